"""Policies: what they refuse, and the indices they plan for one sequence."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from service.engine.options import parse_policy
from sparse_attn.errors import PatternFileError, PolicyError
from sparse_attn.plan.formats import write_duo, write_minference
from sparse_attn.plan.patterns import AShape, VerticalSlash
from sparse_attn.plan.policies import Auto, Joined, LServe, Quest, SkipSoftmax, Streaming, XAttention, as_data, joined
from sparse_attn.plan.policy import ModelShape, Policy
from sparse_attn.plan.state import PolicyState
from sparse_attn.rows import HeadPages, SequenceRows

PAGE = 16
MODEL = ModelShape(num_layers=2, num_q_heads=4, num_kv_heads=2, head_dim=16, page_size=PAGE)


@pytest.fixture
def alpha(tmp_path):
    """KV head 0 of each layer streams."""
    path = tmp_path / "duo.tsv"
    write_duo(path, [[0.1, 0.9], [0.2, 0.8]])
    return path


def state_of(text, prompt_len, model=MODEL):
    policy = parse_policy(text)
    policy.check(model)
    return PolicyState(policy, model, prompt_len)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quest:budget=256,sink=64,recent=256", "leaves no page to select .* give at least budget=368"),
        ("lserve:budget=100,streaming=0", "lserve: budget=100 leaves no page"),
        ("streaming:sink=0", "sink=0 must be positive"),
        ("xattention:block=40", "block=40 must be a multiple of the page size 16"),
        ("xattention:stride=48", "stride=48 must divide block=128"),
        ("xattention:p=0", "must lie above 0"),
        ("flexprefill:gamma=1.5", "not above 1"),
        ("trianglemix:deep=2", "deep=2.0 must lie"),
        ("quest:gate=-1", "gate=-1 must not be negative"),
        ("lserve", "no head file ships for this model; .*folio calibrate.* heads=FILE, or streaming=0"),
        ("minference", "no head file ships"),
        ("quest:interval=0", "interval=0 must be positive"),
        ("lserve:streaming=2,heads=x", "streaming=2.0 must lie in 0"),
        ("xattention:p=2+quest", "xattention: p"),
        ("xattention+quest:budget=3", "quest: budget"),
    ],
)
def test_what_the_model_cannot_use_is_refused_by_name(text, message):
    with pytest.raises(PolicyError, match=message):
        parse_policy(text).check(MODEL)


def test_files_of_another_model_are_refused(tmp_path, alpha):
    with pytest.raises(PolicyError, match="2 layers of 2 KV heads, the model 3 of 2: it belongs to another model"):
        LServe(heads=str(alpha)).check(ModelShape(3, 4, 2, 16, PAGE))
    write_minference(tmp_path / "p.json", [[VerticalSlash(1, 2)] * 8] * 2)
    with pytest.raises(PolicyError, match="2 layers of 8 heads, the model 2 of 4: it belongs to another model"):
        parse_policy(f"minference:file={tmp_path / 'p.json'}").check(MODEL)
    with pytest.raises(PatternFileError, match="cannot be read"):
        parse_policy("minference:file=nowhere.json").check(MODEL)


def test_equal_keys_mean_equal_policies():
    assert parse_policy("quest:budget=4096").cache_key() == parse_policy("quest").cache_key()
    texts = ["dense", "quest", "quest:budget=2048", "lserve:streaming=0", "xattention+quest", "quest+xattention"]
    assert len({parse_policy(t).cache_key() for t in texts}) == len(texts)


def test_shapes_come_from_a_configuration():
    class Config:
        num_hidden_layers, num_attention_heads, hidden_size = 3, 6, 96

    assert ModelShape.of_config(Config) == ModelShape(3, 6, 6, 16)


# --- auto ------------------------------------------------------------------------------------------------------------


def test_auto_takes_the_policy_measured_for_the_length(tmp_path):
    table = tmp_path / "crossovers.json"
    rows = [{"min_length": 100, "policy": [{"name": "xattention"}]}, {"min_length": 0, "policy": [{"name": "dense"}]}]
    table.write_text(json.dumps({"cpu": rows}))
    auto = Auto(table=str(table))
    auto.check(MODEL)
    assert auto.resolve(99, MODEL) == Policy()
    assert auto.resolve(100, MODEL) == XAttention()
    assert PolicyState(auto, MODEL, 100).policy == XAttention()
    with pytest.raises(PatternFileError, match="no table of crossovers for 'tpu'"):
        Auto(table=str(table), device="tpu").check(MODEL)


@pytest.mark.parametrize(
    "policy",
    [Policy(), Quest(budget=512), SkipSoftmax(lambda_=3.0), Joined(first=XAttention(p=0.5), second=Quest(gate=9))],
)
def test_a_table_holds_what_was_written(policy, tmp_path):
    table = tmp_path / "crossovers.json"
    table.write_text(json.dumps({"cpu": [{"min_length": 0, "policy": as_data(policy)}]}))
    assert Auto(table=str(table)).resolve(1, MODEL) == policy


@pytest.mark.parametrize("policy", [[{"name": "sparse"}], [{"name": "quest", "budgets": 3}], "quest", [{}] * 3, []])
def test_a_table_of_what_is_no_policy_is_refused(policy, tmp_path):
    table = tmp_path / "crossovers.json"
    table.write_text(json.dumps({"cpu": [{"min_length": 0, "policy": policy}]}))
    with pytest.raises(PatternFileError, match="no table of crossovers"):
        Auto(table=str(table)).check(MODEL)


def test_a_policy_of_tiles_is_dense_up_to_its_gate_and_may_be_of_one_phase_alone():
    skip = parse_policy("skip:lambda=2,gate=100")
    assert skip.is_dense(MODEL, 100, 100)
    assert not skip.is_dense(MODEL, 100, 101)
    assert parse_policy("skip:lambda=0").is_dense(MODEL)
    first, second = parse_policy("skip+quest"), parse_policy("dense+skip:lambda=4")
    assert [first.skips(prefill) for prefill in (True, False)] == [(1.0, 1024), (0.0, 0)]
    assert [second.skips(prefill) for prefill in (True, False)] == [(0.0, 0), (4.0, 1024)]
    state = PolicyState(second, MODEL, 2000)
    assert state.skip(1000) is None
    assert state.skip(2000).counts is state.decode_stats.tiles
    with pytest.raises(PolicyError, match="lambda=-1 must not be negative"):
        parse_policy("skip:lambda=-1").check(MODEL)


def test_three_policies_are_not_joined():
    with pytest.raises(PolicyError, match=r"dense\+quest\+dense: at most two"):
        joined([Policy(), Quest(), Policy()])


def test_auto_takes_the_table_of_the_model_where_one_ships():
    embedded = ModelShape(4, 8, 4, 64, max_length=65536, fingerprint="embedded")
    own, any_model = Auto().resolve(40_000, embedded), Auto().resolve(40_000, MODEL)
    assert any_model == Policy()
    assert own.prefill(3, embedded, 40_000)


@pytest.mark.parametrize(
    ("text", "prompt_len", "max_length", "dense"),
    [
        ("xattention:gate=1024,block=64", 1024, 9000, True),
        ("xattention:gate=1024,block=64", 1025, 9000, False),
        ("xattention:gate=1000,block=64", 1000, 9000, False),
        ("quest:budget=512,dense_layers=0", 600, 512, True),
        ("quest:budget=512,dense_layers=0", 500, 513, False),
        ("xattention:gate=1024,block=64+quest:budget=2048,dense_layers=0", 1024, 2048, True),
        ("xattention:gate=1024,block=64+quest:budget=2048,dense_layers=0", 1024, 2049, False),
        ("dense", 1 << 20, 1 << 20, True),
    ],
)
def test_a_sequence_that_stays_below_the_gates_is_dense(text, prompt_len, max_length, dense):
    assert parse_policy(text).is_dense(MODEL, prompt_len, max_length) == dense


@pytest.mark.parametrize("text", ["xattention:p=1.0,gate=0,block=16", "streaming:sink=16,local=4096,block=16"])
def test_what_visits_everything_passes_no_index(text):
    state = state_of(text, 128)
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(128, 4, 16, generator=g), torch.randn(128, 2, 16, generator=g)
    assert state.plan(SequenceRows(q, k, 0.25)) is None
    assert state.prefill_stats.density == 1.0


def test_the_shipped_table_is_readable():
    for device in ("cpu", "cuda"):
        assert isinstance(Auto(device=device).resolve(10, MODEL), Policy)


# --- prefill ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "xattention:gate=0,block=32,p=0.5,sink=16,local=16",
        "streaming:sink=16,local=32,block=32",
        "trianglemix:gate=0,block=32,last=16,local=32",
    ],
)
def test_a_gate_keeps_early_rows_dense_however_the_prompt_is_cut(make_sequence, text):
    seq = make_sequence(320)
    name, options = text.split(":")
    state = state_of(f"{name}:{options},gate=100".replace("gate=0,", ""), 320)
    index = state.plan(seq.rows(0, 320, layer=1))
    visited = index.to_mask()
    first_sparse = 100 // 32
    causal = torch.arange(20) <= (index.last_positions // PAGE)[:, None]
    assert torch.equal(visited[:, :first_sparse], causal[:first_sparse].expand_as(visited[:, :first_sparse]))
    assert not torch.equal(visited[:, first_sparse:], causal[first_sparse:].expand_as(visited[:, first_sparse:]))
    assert state.plan(seq.rows(0, 96, layer=1)) is None
    seq.store(0, 80)
    assert state.plan(seq.rows(80, 96, layer=1)) is None


@pytest.mark.parametrize("cuts", [[0, 64, 128, 300], [0, 37, 39, 150, 299, 300]])
@pytest.mark.parametrize(
    "text",
    [
        "streaming:sink=20,local=50,block=32",
        "trianglemix:gate=0,deep=1,local=40,last=70,block=32",
        "lserve:heads={},budget=128,sink=16,local=32,recent=32,prefill_local=48,block=32",
    ],
)
def test_static_policies_attend_alike_in_chunks_and_at_once(make_sequence, text, cuts, alpha):
    seq = make_sequence(300)
    whole_index = state_of(text.format(alpha), 300).plan(seq.rows(0, 300))
    assert whole_index is not None
    assert whole_index.num_heads == 2  # one list of blocks for the group
    whole = seq.attend(0, 300, whole_index)
    assert not torch.allclose(whole, seq.attend(0, 300, None))
    state = state_of(text.format(alpha), 300)
    for first, end in itertools.pairwise(cuts):
        part = seq.attend(first, end, state.plan(seq.rows(first, end)))
        torch.testing.assert_close(part, whole[first:end], atol=1e-12, rtol=1e-12)
        seq.store(first, end)
    assert 0 < state.prefill_stats.density < 1


@pytest.mark.parametrize("window", [24, 100])
def test_a_sliding_window_is_cut_out_of_the_index(make_sequence, window):
    seq = make_sequence(300)
    state = state_of("xattention:gate=0,block=32,p=1.0", 300)
    index = state.plan(seq.rows(0, 300, window=window))
    assert index.density() < 0.8
    torch.testing.assert_close(seq.attend(0, 300, index, window), seq.attend(0, 300, None, window))


@pytest.mark.parametrize("cuts", [[0, 64, 192, 300], [0, 37, 39, 150, 299, 300]])
def test_means_of_keys_are_kept_between_chunks_and_dropped_after(make_sequence, cuts):
    seq = make_sequence(300)
    text = "xattention:gate=0,block=32,p=0.5,stride=8,means=true,sink=16,local=16"
    state = state_of(text, 300)
    for first, end in itertools.pairwise(cuts):
        index = state.plan(seq.rows(first, end))
        alone = state_of(text, 300).plan(seq.rows(first, end))  # gathers every key anew
        assert (index is None and alone is None) or torch.equal(index.to_mask(), alone.to_mask())
        assert bool(state._tile_means) == (end < 300)
        seq.store(first, end)


def test_minference_gives_each_head_its_own(make_sequence, tmp_path):
    write_minference(
        tmp_path / "p.json", [[AShape(16, 32), VerticalSlash(32, 160), AShape(16, 64), AShape(16, 32)]] * 2
    )
    seq = make_sequence(300)
    index = state_of(f"minference:gate=0,block=32,file={tmp_path / 'p.json'}", 300).plan(seq.rows(0, 300))
    visited = index.to_mask()
    assert visited.shape[0] == 4
    assert torch.equal(visited[0], visited[3])
    assert not torch.equal(visited[0], visited[1])
    assert (visited[2] | visited[0]).equal(visited[2])


def test_shared_blocks_serve_the_group(make_sequence):
    seq = make_sequence(300)
    index = state_of("xattention:gate=0,block=32,p=0.6,share=true,local=16,sink=16", 300).plan(seq.rows(0, 300))
    index.validate(num_kv_heads=2, num_q_heads=4, page_size=PAGE)
    assert index.num_heads == 2


# --- decode ----------------------------------------------------------------------------------------------------------

SELECTING = "quest:budget=144,sink=16,recent=32,dense_layers=0,interval={}"


@pytest.mark.parametrize(
    "text",
    ["quest:budget=400,recent=32,sink=16", "lserve:budget=400,recent=32,sink=16,local=16,prefill_local=16,heads={}"],
)
def test_a_budget_of_the_whole_length_is_dense(make_sequence, text, alpha):
    seq = make_sequence(400)
    state = state_of(text.format(alpha), 380)
    assert state.plan(seq.rows(0, 380)) is None
    seq.store(0, 380)
    for position in range(380, 400):
        assert state.plan(seq.rows(position, position + 1, layer=1)) is None
        seq.store(position, position + 1)
    assert state.decode_stats.density == state.prefill_stats.density == 1.0


@pytest.mark.parametrize("interval", [1, 4])
def test_decode_keeps_sinks_and_recent_pages_within_the_budget(make_sequence, interval):
    seq = make_sequence(420)
    seq.store(0, 400)
    state = state_of(SELECTING.format(interval), 400)
    for p in range(400, 420):
        index = state.plan(seq.rows(p, p + 1)).validate(num_kv_heads=2, num_q_heads=4, page_size=PAGE)
        visited = index.to_mask(-(-(p + 1) // PAGE))[:, 0]
        assert visited[:, 0].all()
        assert visited[:, (p - 31) // PAGE :].all()
        assert (visited.sum(-1) * PAGE <= 144 + PAGE).all()
        assert (visited.sum(-1) >= 144 // PAGE - 1).all()
        seq.store(p, p + 1)
    assert 0.3 < state.decode_stats.density < 0.4


def test_the_pages_chosen_are_those_of_the_largest_bounds(make_sequence):
    seq = make_sequence(401, num_heads=2)
    seq.store(0, 400)
    state = state_of(SELECTING.format(1), 400, ModelShape(1, 2, 2, 16, PAGE))
    visited = state.plan(seq.rows(400, 401)).to_mask(26)[:, 0]
    bounds = seq.stats.bounds(0, seq.q[400:401], seq.table)[0]
    middle = range(1, (400 - 31) // PAGE)
    for h in range(2):
        chosen = {j for j in middle if visited[h, j]}
        best = sorted(middle, key=lambda j: -bounds[h, j])[: len(chosen)]
        assert chosen == set(best)


def test_a_selection_serves_its_interval_and_no_longer(make_sequence):
    seq = make_sequence(420)
    seq.store(0, 400)
    state = state_of(SELECTING.format(4), 400)
    middles = []
    for p in range(400, 420):
        visited = state.plan(seq.rows(p, p + 1)).to_mask(27)[:, 0]
        middles.append(visited[:, 1 : (400 - 31) // PAGE].clone())
        seq.store(p, p + 1)
    for p in range(20):
        assert torch.equal(middles[p], middles[p // 4 * 4])
    assert any(not torch.equal(middles[p], middles[p - 1]) for p in range(4, 20, 4))


@pytest.mark.parametrize("interval", [1, 3, 4])
@pytest.mark.parametrize("text", [SELECTING, "lserve:budget=144,sink=16,recent=32,local=16,interval={},heads=ALPHA"])
def test_a_draft_tree_selects_what_plain_decoding_selects(make_sequence, interval, text, alpha):
    """Rows of trees, of which a path is accepted, visit the pages that one row at a time would have visited."""
    text = text.format(interval).replace("ALPHA", str(alpha))
    seq = make_sequence(460)
    seq.store(0, 400)
    plain, masks = state_of(text, 400), {}
    for p in range(400, 440):
        masks[p] = plain.plan(seq.rows(p, p + 1)).mask(0, slice(0, 1), p + 1)[:, 0]
        seq.store(p, p + 1)

    seq = make_sequence(460)
    seq.store(0, 400)
    state, p, g = state_of(text, 400), 400, torch.Generator().manual_seed(0)
    while p < 430:
        # Two branches below the root: the text itself (even rows) and noise (odd rows), in breadth-first order.
        depth = int(torch.randint(0, 6, (), generator=g))
        depths = [0] + [d for d in range(1, depth + 1) for _ in range(2)]
        n = len(depths)
        true_rows = [0] + [1 + 2 * d for d in range(depth)]
        tree = torch.zeros(n, n, dtype=torch.bool)
        for i in range(n):
            tree[i, [j for j in range(i + 1) if j == 0 or (j - i) % 2 == 0]] = True
        q = torch.randn(n, 4, 16, generator=g, dtype=torch.float64)
        q[true_rows] = seq.q[p : p + depth + 1]
        rows = replace(seq.rows(p, p + n), q=q, positions=p + torch.tensor(depths), tree_mask=tree)
        index = state.plan(rows)
        for d, row in enumerate(true_rows):
            seen = index.mask(0, slice(row, row + 1), p + row + 1)[:, 0]
            assert torch.equal(seen[:, :p], masks[p + d][:, :p])
            assert seen[:, p:].all()
        accepted = int(torch.randint(0, depth + 1, (), generator=g))
        state.commit(true_rows[: accepted + 1])
        seq.store(p, p + accepted + 1)
        p += accepted + 1
    assert state.decode_stats.late_selections == 0


def test_a_lost_selection_is_made_anew_and_counted(make_sequence):
    seq = make_sequence(420)
    seq.store(0, 403)
    state = state_of(SELECTING.format(4), 400)
    assert state.plan(seq.rows(403, 404)) is not None
    assert state.decode_stats.late_selections == 1


def test_what_cannot_be_planned_is_said(make_sequence):
    seq = make_sequence(500)
    seq.store(0, 400)
    state = state_of(SELECTING.format(1), 410)
    with pytest.raises(PolicyError, match="rows 400 to 420 cross the end of the prompt at 410"):
        state.plan(seq.rows(400, 420))
    state = state_of(SELECTING.format(1), 400)
    assert state.max_rows(390) == 10
    assert state.max_rows(400) == 32
    assert state_of("dense", 10).max_rows(10) is None
    assert state.plan(seq.rows(400, 432)) is not None
    with pytest.raises(PolicyError, match="recent=32 is shorter than the draft of 60 rows"):
        state.plan(seq.rows(400, 460))
    rows = replace(seq.rows(400, 401), groups=[HeadPages(range(2), seq.key_pages, seq.table)])
    with pytest.raises(PolicyError, match="quest ranks pages, but the KV pool keeps no page statistics"):
        state.plan(rows)


# --- streaming heads -------------------------------------------------------------------------------------------------


def test_streaming_heads_see_sinks_and_a_window_exactly_as_a_mask_does(make_sequence):
    """With the window a multiple of the page and rows at page starts, blocks are the windowed mask itself."""
    seq = make_sequence(420, page_size=16)
    seq.store(0, 400)
    state = state_of("streaming:sink=16,local=33", 400)
    for p in range(400, 417):
        index = state.plan(seq.rows(p, p + 1))
        first_kept = (p - 32) // PAGE * PAGE
        keys = torch.arange(p + 1)
        mask = (keys < 16) | (keys >= first_kept)
        k, v = (x[: p + 1].repeat_interleave(2, 1) for x in (seq.k, seq.v))
        scores = torch.einsum("hd,khd->hk", seq.q[p], k) * seq.scale
        expected = torch.einsum("hk,khd->hd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v)
        torch.testing.assert_close(seq.attend(p, p + 1, index)[0], expected)
        seq.store(p, p + 1)


@pytest.mark.parametrize(
    "text",
    [
        "streaming:sink=20,local=50,block=32",
        "streaming:sink=20,local=50,block=32,gate=200",
        "lserve:heads={},budget=144,sink=16,local=32,recent=32,prefill_local=48,block=32,interval=4",
    ],
)
def test_freed_pages_are_never_visited_again(make_sequence, text, alpha):
    """The ring: overwrite every page that may be freed, and nothing changes."""
    policy = parse_policy(text.format(alpha))
    groups = policy.head_groups(MODEL)
    state = PolicyState(policy, MODEL, 300)
    seq = make_sequence(340)
    freed: set[int] = set()
    position = 0
    for count in [40, 60, 100, 100] + [1] * 40:
        index = state.plan(seq.rows(position, position + count))
        freed |= set(groups.freeable(position, 300, PAGE, policy.block))
        streaming = list(groups.streaming[0])
        if index is None:
            assert not freed
        else:
            assert not index.to_mask(-(-340 // PAGE))[streaming][..., sorted(freed)].any()
        seq.store(position, position + count)
        position += count
    assert len(freed) * PAGE > 340 - 20 - 50 - 6 * PAGE


def test_groups_name_the_streaming_heads(alpha):
    groups = LServe(heads=str(alpha)).head_groups(MODEL)
    assert groups.streaming == ((0,), (0,))
    assert groups.retrieval(0, 2) == (1,)
    assert LServe(streaming=0.0).head_groups(MODEL) is None
    assert Policy().head_groups(MODEL) is None
    assert Streaming().head_groups(MODEL).streaming == ((0, 1), (0, 1))


def test_policies_say_what_they_need():
    assert parse_policy("quest").needs_page_stats(ModelShape(3, 4, 2, 16))
    assert not parse_policy("quest:dense_layers=3").needs_page_stats(ModelShape(3, 4, 2, 16))
    assert not parse_policy("xattention").needs_page_stats(MODEL)
    assert Policy().is_dense(MODEL)
    assert not parse_policy("dense+quest:dense_layers=0").is_dense(MODEL)
