"""Class names: what a user may write, what is refused, and how search ranks."""

import pytest

from model.class_labels import (
    AmbiguousClassError,
    ClassLabel,
    ClassLabels,
    UnknownClassError,
)


@pytest.fixture
def imagenet() -> ClassLabels:
    """Return the classes of ImageNet-1k."""
    return ClassLabels.imagenet()


def test_imagenet_has_a_thousand_classes_in_label_order(imagenet: ClassLabels) -> None:
    """Row i of the data is class i, with its WordNet id and the usual name first."""
    assert len(imagenet) == 1000
    assert [label.index for label in imagenet] == list(range(1000))
    assert imagenet[207] == ClassLabel(207, "n02099601", ("golden retriever",))
    assert imagenet[0].names == ("tench", "Tinca tinca")
    assert len({label.wordnet_id for label in imagenet}) == 1000
    assert imagenet is ClassLabels.imagenet()


@pytest.mark.parametrize(
    "query",
    [
        207,
        "207",
        " 207 ",
        "n02099601",
        "N02099601",
        "golden retriever",
        "Golden  Retriever\n",
        "golden_retriever",
        "GOLDEN-RETRIEVER",
    ],
    ids=repr,
)
def test_a_class_is_found_however_it_is_written(imagenet: ClassLabels, query: int | str) -> None:
    """An index, a WordNet id or a name, in any case, spaces, underscores or hyphens."""
    assert imagenet.find(query).index == 207


def test_every_class_is_found_by_its_index_and_wordnet_id(imagenet: ClassLabels) -> None:
    """Each class answers to its own index and id, and to each name that it alone has."""
    for label in imagenet:
        assert label.wordnet_id is not None
        assert imagenet.find(label.index) is label
        assert imagenet.find(label.wordnet_id) is label
        for name in label.names:
            assert label in _classes_called(imagenet, name)


def _classes_called(labels: ClassLabels, name: str) -> list[ClassLabel]:
    try:
        return [labels.find(name)]
    except AmbiguousClassError as error:
        return error.candidates


def test_names_of_two_classes_are_refused_with_both(imagenet: ClassLabels) -> None:
    """A crane is a bird and a machine: the error says so and offers their ids."""
    with pytest.raises(AmbiguousClassError, match=r"n02012849.*n03126707") as refused:
        imagenet.find("Crane")
    assert [label.index for label in refused.value.candidates] == [134, 517]
    assert str(refused.value).startswith("2 classes have this name: 134 crane (n02012849);")


def test_nineteen_imagenet_names_are_ambiguous(imagenet: ClassLabels) -> None:
    """The data has nineteen names that two classes share, and none that three do."""
    names = {name.casefold() for label in imagenet for name in label.names}
    counts = [len(_classes_called(imagenet, name)) for name in names]
    assert sorted(set(counts)) == [1, 2]
    assert counts.count(2) == 19


def test_an_unknown_name_is_refused_with_the_nearest_classes(imagenet: ClassLabels) -> None:
    """A misspelt name suggests the class that was meant."""
    with pytest.raises(UnknownClassError, match="nearest: 207 golden retriever") as refused:
        imagenet.find("golden retreiver")
    assert refused.value.candidates[0].index == 207


def test_part_of_a_name_suggests_the_classes_that_have_it(imagenet: ClassLabels) -> None:
    """Nothing is called just "retriever"; the five retrievers are the candidates."""
    with pytest.raises(UnknownClassError) as refused:
        imagenet.find("retriever")
    assert [label.index for label in refused.value.candidates] == [205, 206, 207, 208, 209]


@pytest.mark.parametrize("query", ["xyzzyplugh", "", " _ ", "x" * 100_000])
def test_a_name_like_no_other_is_refused_without_candidates(
    imagenet: ClassLabels, query: str
) -> None:
    """Nothing resembles the query, however long it is: the error says what may be asked."""
    with pytest.raises(UnknownClassError, match="an index from 0 to 999") as refused:
        imagenet.find(query)
    assert refused.value.candidates == []


@pytest.mark.parametrize("query", [-1, 1000, "01000", True, "9" * 5000], ids=repr)
def test_an_index_out_of_range_is_refused(imagenet: ClassLabels, query: int | str) -> None:
    """The error gives the range; an endless number is refused without being converted."""
    with pytest.raises(UnknownClassError, match="must be from 0 to 999"):
        imagenet.find(query)


def test_search_ranks_exact_prefix_word_and_substring() -> None:
    """Exact, then prefix, whole word, beginning of a word, substring, resemblance; then index."""
    labels = ClassLabels.from_names(
        ["bat", "meerkat, wild", "dogcart", "bulldog", "top dogs", "hot dog", "dog", "dig"]
    )
    assert [label.name for label in labels.search("dog", limit=8)] == [
        "dog",
        "dogcart",
        "hot dog",
        "top dogs",
        "bulldog",
        "dig",
    ]


def test_search_finds_an_index_and_the_beginning_of_a_wordnet_id(imagenet: ClassLabels) -> None:
    """The class with that index comes first; an id is found by how it begins."""
    assert imagenet.search("7")[0].index == 7
    assert [label.index for label in imagenet.search("n020996")] == [207]
    assert len(imagenet.search("n014", limit=1000)) < 20


def test_search_gives_no_class_twice_and_no_more_than_asked(imagenet: ClassLabels) -> None:
    """Ranks do not overlap and the limit holds; an empty query lists classes in order."""
    found = imagenet.search("terrier", limit=1000)
    assert len(found) == len(set(found)) > 20
    assert len(imagenet.search("terrier", limit=3)) == 3
    assert [label.index for label in imagenet.search("", limit=4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        imagenet.search("dog", limit=0)


def test_a_name_wins_over_a_decimal_index() -> None:
    """Classes called by numbers are found by those; as an int a number is an index."""
    labels = ClassLabels.from_names(["1", "0", "10"])
    assert labels.find("1").index == 0
    assert labels.find(1).name == "0"
    assert labels.find("2").name == "10"


def test_json_round_trips(imagenet: ClassLabels) -> None:
    """Labels survive to_json and from_json, with and without WordNet ids."""
    digits = ClassLabels.from_names([("zero", "0"), "one"])
    assert digits.to_json() == [{"names": ["zero", "0"]}, {"names": ["one"]}]
    for labels in (imagenet, digits):
        assert ClassLabels.from_json(labels.to_json()) == labels


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least one class"),
        ({}, "must be a list, got dict"),
        ([{"names": ["a"]}, {"name": ["b"]}], "class 1 must be an object"),
        ([{"names": ["a"], "id": 3}], "class 0 must be an object"),
        ([{"names": "ab"}], "class 0 must be an object"),
        ([{"names": []}], "class 0 needs names"),
        ([{"names": ["a", " "]}], "class 0 needs names"),
        ([{"names": [3]}], "class 0 needs names"),
        ([{"names": ["a"], "wordnet_id": "n12"}], "a WordNet id is n and eight digits"),
        ([{"names": ["a"], "wordnet_id": "n00000001"}] * 2, "two classes have the WordNet id"),
    ],
)
def test_malformed_labels_are_refused(values: object, message: str) -> None:
    """Each kind of mistake in a file is named, with the class that has it."""
    with pytest.raises(ValueError, match=message):
        ClassLabels.from_json(values)
