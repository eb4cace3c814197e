"""`python -m training.photographs.additions PACKAGE`: general words and the network for people.

Both are those of the bundled package: the network as it is, and the words with their members, which
the package's own text tower embeds. Commit 87d92eb6 has the programs that made them, from WordNet
(`general_words.py` here) and from MediaPipe's selfie segmentation (`people.py`).
"""

import shutil
import sys

from model.general_words import WORDS_FILE, read_words, write_words
from model.graphs import FOREGROUND_FILE
from model.package import open_package, write_manifest
from model.runtime.load import load_runtime
from model.text import TextTokenizer


def add(source: str) -> None:
    """Write both into a package, and list them in the manifest."""
    package, bundled = open_package(source), open_package("bundled")
    known = read_words(bundled)
    assert known is not None
    tokenizer, runtime = TextTokenizer.from_package(package), load_runtime(package)
    embeddings = {}
    for name in dict.fromkeys(name for group in known.members_of.values() for name in group):
        tokens = tokenizer.encode([name])
        embeddings[name] = runtime.encode_texts(tokens.token_ids_BL, tokens.mask_BL)[0]
    write_words(package.path / WORDS_FILE, known.members_of, embeddings)
    shutil.copyfile(bundled.file(FOREGROUND_FILE), package.path / FOREGROUND_FILE)
    write_manifest(package.path, package.manifest)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give one package folder: python -m training.photographs.additions PACKAGE")
    add(sys.argv[1])
