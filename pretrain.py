"""The command: accelerate launch pretrain.py (see --help)."""

from pretrain.__main__ import main

if __name__ == "__main__":
    main()
