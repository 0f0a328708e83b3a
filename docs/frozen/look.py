"""A program that carries tinygptv inside: `look PICTURE QUESTION` prints the answer. Frozen by look.spec."""

import sys

from tinygptv.runtime import TinyGPTV, TinyGPTVError


def main() -> int:
    """Answer one question with the model that is packed into the program."""
    if len(sys.argv) != 3:
        print("usage: look PICTURE QUESTION", file=sys.stderr)
        return 2
    try:
        with TinyGPTV.load() as model:  # the demo bundle; yours: TinyGPTV.load(Path(__file__).parent / "bundle")
            print(model.ask(sys.argv[1], sys.argv[2]).text)
    except TinyGPTVError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
