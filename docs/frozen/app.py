"""The desktop app as a program that needs no Python: `tinygptv-app [IMAGE ...]`. Frozen by app.spec."""

import sys

from tinygptv.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
