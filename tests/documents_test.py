#!/usr/bin/env python3
"""The documents: their links lead somewhere, their tables have no empty cells, generated pages are as the program says.

usage: tests/documents_test.py CSML      (the binary; python3's standard library only)

A link to a file may name something in it: [the loop](../csml/training/train_loop.cpp#train_epoch) needs a file that
contains the word train_epoch. A link to a document may name a heading of it.
"""
import os
import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```[^\n]*$", re.MULTILINE | re.DOTALL)
GENERATED = [("docs/keys.md", ["pretrain", "--help-keys", "markdown"])]


def documents():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
                            capture_output=True, text=True, check=False)
    names = listed.stdout.split("\n") if listed.returncode == 0 else \
        [str(p.relative_to(ROOT)) for folder in ("", "docs", "docs/appendix", "tests/golden", "bench", "examples")
         for p in (ROOT / folder).glob("*.md")]
    return sorted(name for name in names if name and (ROOT / name).is_file())


def prose(path):
    """The text without code, in which brackets and parentheses are not links."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "code", text)


def headings(path):
    """The anchors that GitHub gives to a document's headings."""
    found = set()
    for line in FENCE.sub("", path.read_text(encoding="utf-8")).splitlines():
        if line.startswith("#"):
            title = line.lstrip("#").strip().lower()
            found.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return found


def broken(document, target):
    """Why a link of a document leads nowhere, or None."""
    if re.match(r"[a-z]+:", target):
        return None  # another site
    path, _, part = target.partition("#")
    file = (document.parent / path).resolve() if path else document
    if not file.exists():
        return "no such file"
    if not part:
        return None
    if file.suffix == ".md":
        return None if part in headings(file) else "no such heading"
    word = re.compile(r"(?<!\w)" + re.escape(part) + r"(?!\w)")
    return None if word.search(file.read_text(encoding="utf-8")) else f"{part} is not in that file"


class Documents(unittest.TestCase):
    def test_the_test(self):
        document = ROOT / "README.md"
        for target in ("docs/nothing.md", "docs/method.md#nothing", "engine/var.h#NothingOfThatName", "#nothing"):
            self.assertIsNotNone(broken(document, target), target)
        for target in ("https://example.org/x", "docs/method.md", "engine/var.h#Var", "docs/architecture.md#the-tree"):
            self.assertIsNone(broken(document, target), target)

    def test_links(self):
        found = 0
        for name in documents():
            for target in LINK.findall(prose(ROOT / name)):
                found += 1
                with self.subTest(document=name, link=target):
                    self.assertIsNone(broken(ROOT / name, target))
        self.assertGreater(found, 50)

    def test_tables(self):
        for name in documents():
            for row in FENCE.sub("", (ROOT / name).read_text(encoding="utf-8")).splitlines():
                if row.startswith("| ") and name in ("README.md", "docs/README.md", "docs/keys.md"):
                    with self.subTest(document=name, row=row):
                        self.assertNotRegex(row, r"\|\s*\|", "an empty cell")

    def test_index(self):
        index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
        for page in sorted((ROOT / "docs").rglob("*.md")):
            name = str(page.relative_to(ROOT / "docs"))
            if name != "README.md":
                self.assertIn(f"]({name})", index, "docs/README.md lists every document")

    def test_generated(self):
        for name, arguments in GENERATED:
            done = subprocess.run([CSML, *arguments], capture_output=True, text=True, check=True)
            self.assertTrue((ROOT / name).read_text(encoding="utf-8") == done.stdout,
                            f"{name} is not what the program says; run: {CSML} {' '.join(arguments)} > {name}")


if __name__ == "__main__":
    CSML = os.path.abspath(sys.argv.pop(1))
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
