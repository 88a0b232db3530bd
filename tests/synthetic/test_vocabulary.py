"""The world's classes, and who shares which names."""

import pytest
from open_clip.tokenizer import SimpleTokenizer

from possam.datasets.class_names import seen_classes
from possam.synthetic.vocabulary import (
    CLASSES,
    TEMPLATES,
    build_merges,
    caption_words,
    context_classes,
    domain_classes,
    domain_names,
    seen_in_training,
    write_bpe,
)


def test_domains_have_the_documented_sizes() -> None:
    sizes = {}
    for domain in ("a", "b", "web"):
        classes = domain_classes(domain)
        assert len({c.index for c in classes}) == len(classes)
        things = sum(c.is_thing for c in classes)
        sizes[domain] = (things, len(classes) - things)
    assert sizes == {"a": (24, 10), "b": (24, 10), "web": (56, 16)}
    assert [c.index for c in CLASSES] == list(range(80))


def test_b_shares_twelve_things_and_five_stuff_with_a() -> None:
    seen = [c for c in domain_classes("b") if seen_in_training(c)]
    assert sum(c.is_thing for c in seen) == 12
    assert len(seen) == 17
    unseen = [c for c in domain_classes("b") if c.is_thing and not seen_in_training(c)]
    assert sorted({c.form for c in unseen if c.form in ("crescent", "bar")}) == ["bar", "crescent"]
    assert sum(c.form in ("crescent", "bar") for c in unseen) == 6


def test_a_class_is_shared_by_a_name_exactly_if_it_is_the_same_class() -> None:
    names_a = {n: c.index for c in domain_classes("a") for n in domain_names("a", c)}
    only_by_synonym = 0
    for c in domain_classes("b"):
        names = domain_names("b", c)
        hits = {names_a[n] for n in names if n in names_a}
        assert hits == ({c.index} if seen_in_training(c) else set())
        only_by_synonym += seen_in_training(c) and names[0] not in names_a
    assert only_by_synonym >= 3


def test_the_larger_vocabularies_share_with_a_what_is_the_same_class() -> None:
    """34 classes of A are seen: of 80 in the stand-in for A-847, of 51 in that for PC-459."""
    training = [domain_names("a", c) for c in domain_classes("a")]
    for names, classes in (
        ([domain_names("b", c) for c in CLASSES], CLASSES),
        ([c.names for c in context_classes()], context_classes()),
    ):
        flags = seen_classes(names, training)
        assert flags == [seen_in_training(c) for c in classes] and sum(flags) == 34
    assert (len(CLASSES), len(context_classes())) == (80, 51)
    assert {c.index for c in context_classes()} == {
        c.index for domain in ("a", "b") for c in domain_classes(domain)
    }


def test_held_out_things_are_in_no_other_domain() -> None:
    held = {c.index for c in domain_classes("held") if c.is_thing}
    assert len(held) == 8
    for domain in ("a", "b", "web"):
        assert not held & {c.index for c in domain_classes(domain)}
    for domain in ("a", "b"):
        assert {c.index for c in domain_classes(domain)} <= {c.index for c in domain_classes("web")}


def test_names_are_unique() -> None:
    names = [name for c in CLASSES for name in c.names]
    assert len(set(names)) == len(names)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SimpleTokenizer:
    path = tmp_path_factory.mktemp("bpe") / "bpe.txt.gz"
    size = write_bpe(path, caption_words())
    made = SimpleTokenizer(bpe_path=str(path), context_length=20)
    assert made.vocab_size == size <= 1000
    return made


def test_every_word_of_the_world_is_one_token(tokenizer: SimpleTokenizer) -> None:
    words = {w for c in CLASSES for name in c.names for w in name.split()}
    words |= {w.strip(".") for t in TEMPLATES for w in t.replace("{}", "").split()}
    for word in sorted(words - {""}):
        assert len(tokenizer.encode(word)) == 1, word


def test_unknown_words_tokenize_to_pieces_and_back(tokenizer: SimpleTokenizer) -> None:
    for text in ("zebra crossing", "café 42", "grasses"):
        tokens = tokenizer.encode(text)
        assert len(tokens) > len(text.split())
        assert (
            tokenizer.decode(tokens).split()
            == "".join(f" {c} " if c.isdigit() else c for c in text).split()
        )


def test_merges_do_not_disturb_earlier_words() -> None:
    merges = build_merges(["star", "as", "stars", "tar"])
    assert merges[:3] == [("s", "t"), ("st", "a"), ("sta", "r</w>")]
    assert len(set(merges)) == len(merges)


def test_bpe_file_is_byte_identical(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name in ("one", "two"):
        write_bpe(tmp_path / name, caption_words())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
