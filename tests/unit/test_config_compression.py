"""`fabric._config.compression`: what belongs to which algorithm."""

from __future__ import annotations

import pytest
import zstandard

from fabric.config import CompressionConfig


def test_levels_are_those_of_the_algorithm() -> None:
    assert CompressionConfig(algorithm="zstd", level=22).level == 22
    with pytest.raises(ValueError, match="for zstd"):
        CompressionConfig(algorithm="zstd", level=0)
    with pytest.raises(ValueError, match="for deflate"):
        CompressionConfig(level=22)


def test_a_dictionary_that_zstd_cannot_load_is_refused() -> None:
    for corrupt in (b"\x37\xa4\x30\xecjunkjunkjunk", b"\x37\xa4\x30\xec1234"):
        with pytest.raises(ValueError, match=rf"CompressionConfig\.zstd_dictionary = <{len(corrupt)} bytes>: expected"):
            CompressionConfig(algorithm="zstd", zstd_dictionary=corrupt)
        unused = CompressionConfig(zstd_dictionary=corrupt)
        with pytest.raises(ValueError, match="zstd_dictionary"):
            unused.with_algorithm("zstd")


def test_a_dictionary_is_trained_or_any_content() -> None:
    samples = [b'{"type": "trade", "price": %d}' % (i * 37 % 1000) for i in range(2000)]
    trained = zstandard.train_dictionary(2000, samples).as_bytes()
    for content in (trained, b"any other content", bytes(8)):
        assert CompressionConfig(algorithm="zstd", zstd_dictionary=content).zstd_dictionary == content
