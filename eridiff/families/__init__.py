"""The families: a folder each, found by eridiff/family.py."""
