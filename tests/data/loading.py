"""Loading data in tests."""

from utils.data.cache import load_source
from utils.data.sources.names import parse_sources
from utils.data.tokenization import ComparisonTokenizer, TextSettings, prepare_tokenizer


def make_encoder(tokenizer, template=None, **settings) -> ComparisonTokenizer:
    """For a tokenizer and the settings of TextSettings that are not the default."""
    end, _ = prepare_tokenizer(tokenizer, False)
    tokenizer.chat_template = template
    return ComparisonTokenizer(tokenizer, TextSettings(end, **settings))


def load(path, encoder, tmp_path, layout=None, columns=None, **options) -> dict[str, list[dict]]:
    """Rows of "train", and of "test" if there is such a split; the cache is in `tmp_path`."""
    (source,) = parse_sources([str(path)], "--data_path", layout, columns)
    tables = load_source(source, encoder, str(tmp_path / "cache"), **options)
    return {name: table.to_list() for name, table in zip(("train", "test"), tables, strict=False)}
