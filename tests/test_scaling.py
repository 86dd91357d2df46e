"""The figures of docs/scaling.md are those that its script computes."""

import re
import sys

from processes import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from scaling import Inputs, row


def test_the_table_is_what_the_formulas_give():
    text = (ROOT / "docs" / "scaling.md").read_text()
    cells = [re.split(r" \| ", line.strip("| ")) for line in re.findall(r"^\| \d.*$", text, re.M)]
    assert [line[0].split()[0] for line in cells] == ["8", "64", "256"]
    for gpus, gradients, gathered, *efficiencies, read in cells:
        rows = [
            row(Inputs(21637120, rate, 64, link, 8, 13e3, 384, 256), int(gpus.split()[0]))
            for rate in (2364, 887)
            for link in (25, 1.25)
        ]
        assert f"{rows[0].gradient_bytes / 1e6:.0f}" == gradients
        assert f"{rows[0].gather_bytes / 1e6:.1f}" == gathered
        assert [f"{one.efficiency * 100:.0f} %" for one in rows] == efficiencies
        assert f"{rows[0].read_bytes / 1e6:,.0f}" == read


def test_a_single_process_sends_nothing_and_loses_nothing():
    alone = row(Inputs(1e6, 100, 10, 1, 8, 1e4, 8, 8), 1)
    assert (alone.gradient_bytes, alone.gather_bytes, alone.efficiency) == (0, 0, 1)
