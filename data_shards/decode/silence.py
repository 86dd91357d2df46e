"""Decoders that say nothing: their warnings quote headers."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
from pydicom import config


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no logs, nothing of C libraries on the process's stderr, no check of values not asked for.

    For the process as a whole, so to be held for the time of one image only.
    """
    logged, validated = logging.root.manager.disable, config.settings.reading_validation_mode
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    logging.disable(logging.CRITICAL)
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings(), _stderr_closed():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.reading_validation_mode = validated
        logging.disable(logged)
        cv2.utils.logging.setLogLevel(level)


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """libtiff, libpng and GDCM print to file descriptor 2."""
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
