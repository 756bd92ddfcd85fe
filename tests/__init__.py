"""Makes `import tests.images` work; the tests themselves are found by path."""
