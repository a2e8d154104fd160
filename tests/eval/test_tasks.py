"""Generated tasks: their answers are right, their lengths are what was asked for, their seeds decide."""

import itertools
import json
import random
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eval.errors import EvalError
from eval.harness.prompting import OfficialPrompter, official_text
from eval.scoring import score_one
from eval.tasks import (
    associations,
    babilong_style,
    coreference,
    infinitebench,
    infinitebench_style,
    longbench,
    paragraphs,
    shared_context,
)
from eval.tasks.generate import MAKERS, generate, largest_fitting, max_new_tokens
from eval.tasks.quoting import QuoteMaker, read_folder
from eval.tasks.sources import sources, tasks_of_suites


@pytest.fixture
def makers(text_folder):
    return MAKERS | {"quote": QuoteMaker(read_folder(text_folder))}


def made(task, makers, prompter, length, count, seed=0):
    tokens = min(max_new_tokens(task), length // 2)
    return list(
        generate(task, makers[task], prompter, length=length, new_tokens=tokens, count=count, seed=seed)
    ), tokens


@pytest.mark.parametrize("task", [*MAKERS, "quote"])
def test_length_is_used_up_and_never_exceeded(task, makers, tokenizer):
    prompter = OfficialPrompter(tokenizer, "yarn")
    length = 6000
    examples, tokens = made(task, makers, prompter, length, 5)
    for example in examples:
        used = prompter.count(example) + tokens
        assert used <= length
        assert used > 0.9 * length
    assert [example.id for example in examples] == list(range(5))


@pytest.mark.parametrize("task", [*MAKERS, "quote"])
def test_right_answer_scores_one_and_silence_zero(task, makers, tokenizer):
    examples, _ = made(task, makers, OfficialPrompter(tokenizer, "yarn"), 6000, 7)
    for example in examples:
        right = example.answer
        right = ", ".join(map(str, right)) if isinstance(right, list) else str(right)
        for scorer in ("official_v1", "official_v2", "fixed"):
            assert score_one(example.task, scorer, right, example.answer) == 1
            assert score_one(example.task, scorer, "", example.answer) == 0


@pytest.mark.parametrize("task", [*MAKERS, "quote"])
def test_seed_decides_and_examples_do_not_depend_on_those_before(task, makers, tokenizer):
    prompter = OfficialPrompter(tokenizer, "yarn")
    first, _ = made(task, makers, prompter, 3000, 4)
    again, _ = made(task, makers, prompter, 3000, 2)
    other, _ = made(task, makers, prompter, 3000, 4, seed=1)
    assert first[:2] == again
    assert [e.context for e in first] != [e.context for e in other]


@given(st.integers(1, 400), st.integers(0, 300), st.integers(0, 60), st.integers(400, 200_000), st.integers(20, 1500))
def test_the_largest_size_is_found_in_few_counts(a_unit, base, flat, length, text):
    asked = []

    def tokens(size):
        """Text that begins to grow at a size, grows unevenly, and runs out."""
        asked.append(size)
        if size > text:
            raise EvalError("the text has run out")
        return min(base, 399 - a_unit // 2) + a_unit * max(0, size - flat) + (size * size % 7) * a_unit // 8

    fitting = [size for size in range(1, text + 1) if tokens(size) <= length]
    assume(fitting and fitting[-1] == len(fitting))  # uneven growth is growth still
    asked.clear()
    assert largest_fitting(tokens, length, "made") == fitting[-1]
    assert len(asked) <= 24
    assert max(asked) <= max(33, 32 * fitting[-1])


def test_needle_stands_at_its_depth():
    for depth in (0.0, 0.5, 1.0):
        context = infinitebench_style.passkey(random.Random(1), 1000, depth).context
        assert context.index("The pass key is") / len(context) == pytest.approx(depth, abs=0.01)


def test_math_find_asks_for_distinct_values():
    for seed in range(200):
        rng = random.Random(seed)
        example = infinitebench_style.math_find(rng, 40, rng.random())
        numbers = json.loads(example.context)
        distinct, kind = sorted(set(numbers)), example.groups["kind"]
        expected = {
            "largest number": distinct[-1],
            "second largest number": distinct[-2],
            "third largest number": distinct[-3],
            "smallest number": distinct[0],
            "second smallest number": distinct[1],
            "third smallest number": distinct[2],
            "median": (sorted(numbers)[19] + sorted(numbers)[20]) / 2,
        }
        assert example.answer == expected[kind]


def test_math_calc_is_right_and_stays_in_range():
    for seed in range(50):
        example = infinitebench_style.math_calc(random.Random(seed), 60, 0)
        terms = example.context.split()
        total, totals = int(terms[0]), []
        for sign, term in zip(terms[1::2], terms[2::2], strict=True):
            total += int(term) if sign == "+" else -int(term)
            totals.append(total)
        assert totals == example.answer
        assert all(0 <= total <= 99 for total in totals)


def test_code_run_is_what_python_says():
    for seed in range(30):
        rng = random.Random(seed)
        example = infinitebench_style.code_run(rng, 60, rng.random())
        call = re.search(r"func_\d+\(-?\d+\)", example.input).group()
        namespace: dict = {}
        exec(example.context.split("\n\n", 1)[1], namespace)
        assert eval(call, namespace) == example.answer


def test_quotes_come_from_held_out_documents_only(text_folder, tokenizer):
    documents = read_folder(text_folder)
    assert 1 <= len(documents) < 3
    held = {sentence for document in documents for sentence in document.sentences}
    for index in range(20):
        example = QuoteMaker(documents)(random.Random(index), 30, 0.5)
        assert example.answer in held
        assert example.context.count(example.answer) == 1


def test_official_files_load_as_a_stream_with_their_broken_lines_named(tmp_path):
    rows = [
        {"id": 0, "context": "x", "input": "?", "answer": ["b"], "options": ["a", "b", "c", "d"]},
        {"id": 1, "context": "x", "input": "?", "answer": "e", "options": ["a", "b", "c", "d"]},
        {"id": 2, "context": "x", "input": "?", "answer": ["d", "D"], "options": ["a", "b", "c", "d"]},
        {"id": 3, "context": 7, "input": "?", "answer": "a", "options": ["a", "b", "c", "d"]},
    ]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "longbook_choice_eng.jsonl").write_text("\n".join([*lines, '{"id": 4, "cont']))
    problems: list = []
    examples = list(infinitebench.load("longbook_choice_eng", str(tmp_path), problems))
    assert [(e.id, e.answer) for e in examples] == [(0, ["b", "B"]), (2, ["d", "D"])]
    assert [problem.line for problem in problems] == [2, 4, 5]


def test_missing_official_file_is_named(tmp_path):
    with pytest.raises(EvalError, match=r"passkey\.jsonl"):
        list(infinitebench.load("passkey", str(tmp_path), []))


def test_unknown_task_is_named_with_the_known_ones():
    with pytest.raises(EvalError, match="paskey") as error:
        sources(["paskey"], data=None, text=None, count=1, seed=0)
    assert "passkey" in error.value.detail


def test_a_task_that_cannot_be_generated_asks_for_its_data():
    with pytest.raises(EvalError, match="longbook_qa_eng") as error:
        sources(["longbook_qa_eng"], data=None, text=None, count=1, seed=0)
    assert "--data" in error.value.detail


def test_longbench_reads_its_list_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(longbench, "CHUNK", 16)
    row = {"question": "Q", "choice_A": "1", "choice_B": "2", "choice_C": "3", "choice_D": "4", "answer": "B"}
    rows = [{"_id": str(i), "context": "…" * 50, "difficulty": "hard", **row} for i in range(5)]
    rows.insert(2, {"_id": "broken"})
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    problems: list = []
    examples = list(longbench.load_v2(path, problems))
    assert [example.id for example in examples] == ["0", "1", "2", "3", "4"]
    assert examples[0].options == ("1", "2", "3", "4")
    assert [problem.line for problem in problems] == [3]
    path.write_text(path.read_text(encoding="utf-8")[:-200], encoding="utf-8")
    with pytest.raises(EvalError, match="middle of a row"):
        list(longbench.load_v2(path, []))


def test_longbench_refuses_a_list_of_something_else(tmp_path):
    path = tmp_path / "data.json"
    path.write_text('[{"question": "?"}, 7]')
    problems: list = []
    with pytest.raises(EvalError, match=r"data\.json holds no row of LongBench v2"):
        list(longbench.load_v2(path, problems))
    assert len(problems) == 2


def test_rows_of_longbench_pro_are_read_but_its_summaries(tmp_path):
    row = {
        "id": "a1", "context": "…", "language": "English", "token_length": "8k", "difficulty": "Easy",
        "primary_task": "T3. Evidence-Grounded QA", "secondary_task": "T3.2 Single-Hop Fact QA",
        "contextual_requirement": "Partial", "question_nonthinking": "Which? [Answer]", "question_thinking": "Think.",
        "answer": ["A"],
    }  # fmt: skip
    others = [
        {**row, "secondary_task": "T4.2 Query-Focused Summary"},
        {**row, "secondary_task": "T12.1 Chess"},
        {**row, "answer": "A"},
        {key: value for key, value in row.items() if key != "question_nonthinking"},
    ]
    path = tmp_path / "longbench_pro.json"
    path.write_text(json.dumps([row, *others]), encoding="utf-8")
    [source] = sources(["longbench_pro"], data=str(path), text=None, count=None, seed=0)
    problems: list = []
    [example] = source.examples(None, None, problems)
    assert (example.id, example.input, example.groups["token_length"]) == ("a1", "Which? [Answer]", "8k")
    assert official_text(example, "gpt4") == "…\n\n\n\nWhich? [Answer]"
    assert score_one("longbench_pro", "fixed", "I think\n[Answer]\nA", example.answer) == 1
    assert [problem.line for problem in problems] == [3, 4, 5]
    assert "T12.1 Chess" in problems[0].message
    path.write_text(json.dumps(others))
    with pytest.raises(EvalError, match=r"longbench_pro\.json holds no row of LongBench Pro"):
        list(longbench.load_pro(path, []))


HELMET = {
    "helmet_json_kv": (
        {"context": "{...}", "question": "k3", "answer": "v3", "demos": [["k1", "v1"], ["k2", "v2"], ["k9", "v9"]]},
        "Key: k2\nCorresponding value: v2\n\nKey: k3\nCorresponding value:",
        ("V3.", 1),
    ),
    "helmet_rag": (
        {"ctxs": [{"title": "T", "text": "words"}], "question": "Who?", "answers": ["The Ann", "Bob"]},
        "Document (Title: T): words\n\nQuestion: Who?\nAnswer:",
        ("it was ann", 1),
    ),
    "helmet_ruler": (
        {"context": "text", "query": "fox", "outputs": ["12", "34"], "type_needle_v": "numbers"},
        "What are all the special magic numbers for fox mentioned in the provided text?\nThe special magic numbers for "
        "fox mentioned in the provided text are",
        ("34", 0.5),
    ),
}


@pytest.mark.parametrize("task", HELMET)
def test_files_of_helmet_are_read_and_others_refused(tmp_path, task):
    row, asked, (said, score) = HELMET[task]
    path = tmp_path / "file.jsonl"
    others = [{}, {**row, "answer": [], "answers": [], "outputs": []}, {"id": 1, "question": 5}]
    path.write_text("\n".join(map(json.dumps, [row, *others])))
    [source] = sources([task], data=str(path), text=None, count=9, seed=0)
    problems: list = []
    [example] = source.examples(None, None, problems)
    assert official_text(example, "yarn").endswith(asked)
    assert score_one(task, "fixed", said, example.answer) == score
    assert score_one(task, "fixed", "nothing of it", example.answer) == 0
    assert [problem.line for problem in problems] == [2, 3, 4]
    path.write_text(json.dumps({"turns": ["?"]}))
    with pytest.raises(EvalError, match=rf"file\.jsonl holds no row of {task}"):
        list(source.examples(None, None, []))
    with pytest.raises(EvalError, match=f"{task} needs its file"):
        sources([task], data=None, text=None, count=9, seed=0)


def replayed(context, question):
    """The answer to one of bAbI's questions, from its facts alone."""
    facts = [
        one.split() for one in re.findall(rf"(?:{'|'.join(babilong_style.PERSONS)}) [a-z ]*?the \w+[^.]*\.", context)
    ]
    where, held, path, gifts = {}, {}, {}, []
    for person, verb, *rest in facts:
        last = rest[-1].rstrip(".")
        if verb == "took":
            held[last] = person
        elif verb == "gave":
            gifts.append((person, rest[1], last))
        elif verb != "left":
            where[person] = last
            for thing in [thing for thing, one in held.items() if one == person]:
                path.setdefault(thing, []).append(last)
    asked = question.rstrip("?").split()
    if asked[:2] == ["Where", "is"]:
        return where[asked[2]] if asked[2] in where else path[asked[3]][-1]
    if asked[:2] == ["Where", "was"]:
        rooms = path[asked[3]]
        return rooms[rooms.index(asked[-1]) - 1]
    if asked[0] == "What" and asked[1] == "did":
        return next(thing for giver, thing, taker in gifts if (giver, taker) == (asked[2], asked[-1]))
    if asked[0] == "Who":
        giver, _, taker = next(gift for gift in gifts if gift[1] == asked[3])
        return giver if asked[1] == "gave" else taker
    relations = re.findall(r"The (\w+) is (north|south|east|west) of the (\w+)\.", context)
    if asked[2] in ("north", "south", "east", "west"):
        return next(room for room, side, of in relations if (side, of) == (asked[2], asked[-1]))
    return next(of for room, side, of in relations if (room, side) == (asked[3], asked[4]))


@pytest.mark.parametrize("task", babilong_style.MAKERS)
def test_the_answers_of_simulated_worlds_follow_from_their_facts(task):
    for seed in range(40):
        example = babilong_style.MAKERS[task](random.Random(seed), 30, 0.5)
        assert replayed(example.context, example.question) == example.answer, example.question
        kind = next(kind for kind in babilong_style.KINDS if example.answer in kind)
        other = next(one for one in kind if one != example.answer)
        assert score_one(task, "fixed", f"It is {example.answer}.", example.answer) == 1
        assert score_one(task, "fixed", f"{example.answer} or {other}", example.answer) == 0


def test_an_association_shares_no_word_with_its_question():
    for place, sight in associations.PLACES.items():
        assert not set(place.lower().split()) & set(sight.lower().split())
    example = associations.association(random.Random(3), 50, 0.5)
    [needle] = [line for line in example.context.split(". ") if example.answer in line]
    assert not set(needle.lower().split()) & set(example.question.lower().rstrip("?").split())


def test_the_right_one_of_four_equal_requests_is_wanted():
    for depth, which in ((0.0, "first"), (0.5, "third"), (1.0, "fourth")):
        example = coreference.coreference(random.Random(1), 30, depth)
        code, text = example.answer.split(" ", 1)
        kind, noun = re.search(r"the \w+ (.+) about a (\w+)\.", example.question).groups()
        texts = re.findall(rf"User: Write a {kind} about a {noun}\.\nAssistant: (.*)", example.context)
        assert len(texts) == 4
        assert text == texts[["first", "second", "third", "fourth"].index(which)]
        assert f"the {which} {kind}" in example.question
        assert score_one("coreference-style", "fixed", text, example.answer) == 0, "without the code"
        assert score_one("coreference-style", "fixed", f"{code} {texts[1]}", example.answer) < 1 or which == "second"


def squad(path, paragraphs=8):
    article = [
        {
            "context": f"Town {n} was founded in {1000 + n}.",
            "qas": [
                {
                    "id": n,
                    "question": f"When was town {n} founded?",
                    "answers": [{"text": str(1000 + n), "answer_start": 24}],
                }
            ],
        }
        for n in range(paragraphs)
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": article}]}))
    return path


def test_questions_over_paragraphs_have_their_answers_among_others(tmp_path):
    path = squad(tmp_path / "towns.en.json")
    for task, asked in paragraphs.QUESTIONS.items():
        [source] = sources([task], data=None, text=path, count=4, seed=0)
        example = source.maker(random.Random(1), 5, 0.0)
        assert example.context.count("Document ") == 5 + asked
        assert example.question.count("?") == asked
        for [answer] in example.answer:
            assert example.context.count(f"founded in {answer}.") == 1
        assert example.answer[0][0] in example.context.splitlines()[1], "at depth 0"
        first, *rest = (answer for [answer] in example.answer)
        assert score_one(task, "fixed", f"In {first}.", example.answer) == 1 / asked
        assert score_one(task, "fixed", " and ".join([first, *rest]), example.answer) == 1
        with pytest.raises(EvalError, match="paragraphs beside those that answer, 9 are needed"):
            source.maker(random.Random(1), 9, 0.0)
    with pytest.raises(EvalError, match="needs a file of SQuAD's format"):
        sources(["qa_1"], data=None, text=None, count=4, seed=0)


def test_a_suite_is_what_can_be_made_of_what_is_given(tmp_path):
    tasks, left_out = tasks_of_suites(["ruler"], data=None, text=None)
    assert len(sources(tasks, data=None, text=None, count=1, seed=0)) == 11
    assert left_out.keys() == {"qa_1", "qa_2"}
    assert "--text" in left_out["qa_1"]
    tasks, left_out = tasks_of_suites(["ruler", "babilong"], data=None, text=squad(tmp_path / "towns.en.json"))
    assert (len(tasks), left_out) == (13 + 5, {})
    tasks, left_out = tasks_of_suites(["infinitebench"], data=None, text=None)
    assert (len(tasks), len(left_out)) == (6, 6)
    assert len(tasks_of_suites(["infinitebench"], data="hub", text=None)[0]) == 12
    with pytest.raises(EvalError, match="unknown suite 'rular'"):
        tasks_of_suites(["rular"], data=None, text=None)
    with pytest.raises(EvalError, match="unknown task 'ruler'") as error:
        sources(["ruler"], data=None, text=None, count=1, seed=0)
    assert "--suite ruler" in error.value.detail


SHARED = [f"{task}-style" for task in shared_context.TASKS]


def asked_of(task, prompter, length=3000, count=12, seed=0):
    [source] = sources([task], data=None, text=None, count=count, seed=seed)
    return list(source.examples(prompter, length, [])), source


@pytest.mark.parametrize("task", SHARED)
def test_questions_of_a_session_share_its_context_and_fit(task, tokenizer):
    prompter = OfficialPrompter(tokenizer, "yarn")
    examples, source = asked_of(task, prompter)
    assert source.shares
    assert [example.id for example in examples] == [f"{n}.{t}" for n in range(3) for t in range(5)]
    lengths = [prompter.count(example) + min(source.new_tokens, 1500) for example in examples]
    assert 2500 < max(lengths) <= 3000
    for session in range(3):
        own = examples[5 * session : 5 * session + 5]
        assert len({example.context for example in own}) == 1
        assert len({example.answer for example in own}) > 1
        texts = [official_text(example, "yarn") for example in own]
        earlier = [before.answer in after.input for before, after in itertools.pairwise(own)]
        assert earlier == ["_scdq" not in task] * 4 or "many_shot" in task
        if "_scdq" not in task:
            assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    assert asked_of(task, prompter, seed=1)[0][0].context != examples[0].context
    assert asked_of(task, prompter, count=4)[0] == examples[:5]


@pytest.mark.parametrize("task", SHARED)
def test_answers_of_sessions_follow_from_their_context(task, tokenizer):
    for example in asked_of(task, OfficialPrompter(tokenizer, "yarn"))[0]:
        if "many_shot" in task:
            noun = example.input.rsplit("Thing: ", 1)[1].split("\n")[0].split()[1]
            right = set(re.findall(rf"Thing: \w+ {noun}\nLabel: (\(\w\))", example.context))
        elif "prefix_suffix" in task:
            first, last = re.findall(r"begins with (\w+) and ends with (\w+)\?", example.input)[-1]
            right = set(re.findall(rf"^{first}\w*{last}$", example.context, re.MULTILINE))
        else:
            key = re.findall(r'Key: "([\w-]+)"', example.input)[-1]
            right = {json.loads(example.context.removeprefix("JSON data:\n"))[key]}
        assert right == {example.answer}
        assert score_one(task, "fixed", f"It is {example.answer}.", example.answer) == 1
        assert score_one(task, "fixed", "(Z)", example.answer) == 0


def test_files_of_scbench_are_read_and_others_refused(tmp_path):
    turns = [{"input": "first?", "answer": "a"}, {"input": "second?", "answer": ["b"]}]
    rows = [
        {"id": 7, "context": "text", "multi_turns": turns},
        {"id": 8, "context": "text"},
        {"input": "x", "multi_turns": []},
    ]
    (tmp_path / "scbench_kv.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems: list = []
    [source] = sources(["scbench_kv"], data=str(tmp_path), text=None, count=9, seed=0)
    found = list(source.examples(None, None, problems))
    assert [(one.id, one.context, one.input, one.answer) for one in found] == [
        ("7.0", "text", "first?", "a"),
        ("7.1", "text", "first? a\n\nsecond?", "b"),
    ]
    assert [one.task for one in found] == ["scbench_kv"] * 2
    assert [problem.line for problem in problems] == [2, 3]
    assert "multi_turns" in problems[0].message
    [alone] = sources(["scbench_kv_scdq"], data=str(tmp_path), text=None, count=9, seed=0)
    assert [one.input for one in alone.examples(None, None, [])] == ["first?", "second?"]
    (tmp_path / "scbench_many_shot.jsonl").write_text('{"question": 1}')
    [other] = sources(["scbench_many_shot"], data=str(tmp_path), text=None, count=9, seed=0)
    with pytest.raises(EvalError, match=r"scbench_many_shot\.jsonl holds no row of SCBench"):
        list(other.examples(None, None, []))
