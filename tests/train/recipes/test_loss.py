import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.making import make_optimizer, make_state
from tests.running import run_here
from train.errors import ConfigError
from train.loop import train_step
from train.loss import build_loss, cross_entropy_sum, focal_loss_sum
from train.precision import Precision
from train.setup.class_weights import class_weights, log_shares

NAMES = ["a", "b", "c"]
LABELS = [0] * 6 + [1] * 3 + [2]
LOGITS = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGETS = torch.tensor(LABELS)
WEIGHT = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)


def test_weighted_and_smoothed_is_torchs_own():
    for weight in (None, WEIGHT):
        for smoothing in (0.0, 0.1):
            found = build_loss(weight, smoothing)(LOGITS, TARGETS)
            assert found.equal(F.cross_entropy(LOGITS, TARGETS, weight, reduction="sum", label_smoothing=smoothing))
    # torch's mean divides by the weights of the labels; here the sum is divided by the number of images
    mean = F.cross_entropy(LOGITS, TARGETS, WEIGHT)
    assert torch.allclose(build_loss(WEIGHT, 0.0)(LOGITS, TARGETS) / WEIGHT[TARGETS].sum(), mean)


def test_shares_give_the_loss_of_labels_and_padding_adds_nothing():
    one_hot = F.one_hot(TARGETS, 3).double()
    one_hot[4] = 0
    labels = TARGETS.clone()
    labels[4] = -100
    for weight in (None, WEIGHT):
        for smoothing in (0.0, 0.1):
            loss = build_loss(weight, smoothing)
            assert torch.allclose(loss(LOGITS, one_hot), loss(LOGITS, labels))
    shares = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64)
    plain = -(LOGITS[:1].log_softmax(-1) * (0.9 * shares + 0.1 / 3) * WEIGHT).sum()
    assert torch.allclose(build_loss(WEIGHT, 0.1)(LOGITS[:1], shares), plain)


def test_adjusted_logits_are_those_of_plain_lines_and_a_prior_makes_them_right():
    shares = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    assert log_shares(NAMES, LABELS) == pytest.approx(shares.log().tolist())
    for tau in (1.0, 1.5):
        p = LOGITS.exp() * shares**tau
        plain = -(p / p.sum(-1, keepdim=True))[range(10), TARGETS].log().sum()
        assert torch.allclose(build_loss(None, 0.0, tau * shares.log())(LOGITS, TARGETS), plain)
    # Where images tell nothing, the adjusted loss is least with equal logits.
    loss = build_loss(None, 0.0, shares.log())
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    loss(logits.expand(10, 3), TARGETS).backward()
    assert torch.allclose(logits.grad, torch.zeros_like(logits), atol=1e-12)
    with pytest.raises(ConfigError, match="no training image of c"):
        log_shares(NAMES, [0, 1])


def test_smoothed_and_adjusted_keeps_frequent_classes_apart_however_rare_the_others():
    shares = torch.tensor([0.98, 0.015, 0.005], dtype=torch.float64)
    loss = build_loss(None, 0.1, shares.log())
    smoothed = 0.9 * F.one_hot(TARGETS, 3) + 0.1 * shares
    plain = -((LOGITS + shares.log()).log_softmax(-1) * smoothed).sum()
    padded = torch.cat([TARGETS, torch.tensor([-100])]), torch.cat([LOGITS, LOGITS[:1]])
    assert torch.allclose(loss(LOGITS, TARGETS), plain) and torch.allclose(loss(padded[1], padded[0]), plain)
    assert torch.allclose(loss(LOGITS, F.one_hot(TARGETS, 3).double()), plain)  # as after MixUp
    # The logits of least loss name the right class, also of the most frequent one.
    best = smoothed.log() - shares.log()
    assert best.argmax(-1).equal(TARGETS)


def test_focal_loss_is_its_formula():
    p = LOGITS.softmax(-1)[range(10), TARGETS]
    assert torch.allclose(focal_loss_sum(LOGITS, TARGETS), (-((1 - p) ** 2) * p.log()).sum())
    assert torch.allclose(focal_loss_sum(LOGITS, TARGETS, gamma=0.0), cross_entropy_sum(LOGITS, TARGETS))


def test_weights_are_one_over_the_count_with_a_mean_of_one_over_the_images():
    weights = class_weights("balanced", NAMES, LABELS)
    assert weights == pytest.approx([10 / (3 * 6), 10 / (3 * 3), 10 / 3])  # scikit-learn's formula
    assert sum(weights[label] for label in LABELS) == pytest.approx(10)
    named = class_weights("c=4, a=2", NAMES, LABELS)
    assert named == class_weights('{"c": 4, "a": 2}', NAMES, LABELS)
    assert named[2] / named[1] == pytest.approx(4) and named[0] / named[1] == pytest.approx(2)
    assert sum(named[label] for label in LABELS) == pytest.approx(10)
    assert class_weights("c=2", NAMES, None) == pytest.approx([0.75, 0.75, 1.5])  # a stream: over the classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d=1", "there is no class d; there are a, b, c"),
        ("a", "must be balanced"),
        ("a=0", "must be balanced"),
        ("a=nan", "must be balanced"),
        ("a=-1", "must be balanced"),
        ("", "must be balanced"),
        ("a=1,a=2", "names a class twice"),
        ("a=1e9,b=1e-9", "a million times"),
        ('{"a": "x"}', "must be balanced"),
    ],
)
def test_other_weights_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        class_weights(text, NAMES, LABELS)


def test_a_class_without_images_cannot_be_balanced():
    with pytest.raises(ConfigError, match="no training image of b"):
        class_weights("balanced", NAMES, [0, 2])


def test_an_update_on_a_mixed_batch_is_that_of_plain_lines():
    torch.manual_seed(0)
    model, precision = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double(), Precision("fp64", torch.device("cpu"))
    pixels, labels = torch.randn(5, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 1, -100])
    shares = torch.rand(5, 3, dtype=torch.float64)
    shares = shares / shares.sum(1, keepdim=True) * (labels >= 0)[:, None]
    expected = -(model(pixels).log_softmax(-1) * shares).sum() / 4
    optimizer = make_optimizer(model, "sgd", lr=0.1)
    state = make_state(model, optimizer, precision, mix=lambda *_: (pixels, shares))
    loss, *_ = train_step(state, [{"pixel_values": pixels, "labels": labels}], 4, 0.0)
    assert torch.allclose(loss, expected.detach())


def test_the_loss_that_is_printed_names_what_is_in_it(tmp_path, capsys):
    flags = ("--label_smoothing", 0.1, "--class_weights", "healthy=2", "--mixup", 0.2, "--cutmix", 1)
    assert run_here("--preset", "debug", "--max_steps", 1, *flags, "--output_dir", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert (
        "training loss: cross-entropy with class weights 0.75 angular_leaf_spot, 0.75 bean_rust, 1.5 healthy" in printed
    )
    assert "label smoothing 0.1; MixUp 0.2; CutMix 1; that of evaluations is without" in printed
