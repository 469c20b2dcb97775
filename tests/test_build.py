import pytest
from omegaconf import OmegaConf

import imagen
from imagen import build
from imagen.cli import compose
from imagen.errors import UserError
from imagen.runs import Weights, read_weights

TOY = compose("train", ["experiment=toy"])


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> list[str]:
    """Exports of an untrained base and super-resolution stage."""
    folder = tmp_path_factory.mktemp("stages")
    paths = []
    for experiment in ("toy", "toy_sr32"):
        cfg = compose("train", [f"experiment={experiment}"])
        module = build.build_module(cfg)
        fingerprint = build.build_encoder(cfg).fingerprint()
        path = folder / f"{experiment}.safetensors"
        Weights(module.state_to_export(), build.run_config(cfg), fingerprint, 0).save(path)
        paths.append(str(path))
    return paths


def test_a_cascade_comes_back_from_its_exports_and_draws(stages):
    cascade = imagen.load_cascade(stages, device="cpu")
    samples = cascade.sample(["a red circle"], seed=7, progress=False)
    assert samples.final.shape == (1, 1, 3, 32, 32)
    assert not cascade.stages[0].denoiser.network.training


def test_nothing_of_hydra_survives_in_what_is_built(stages):
    for stage in imagen.load_cascade(stages).stages:
        for part in (stage, stage.sampler, stage.guidance, stage.denoiser.network):
            assert not any(
                "omegaconf" in type(v).__module__ or "hydra" in type(v).__module__ for v in vars(part).values()
            )


def test_slots_replace_the_runs_own_settings(stages):
    slot = OmegaConf.create(
        {"guidance": {"_target_": "imagen.guidance.NoGuidance"}, "augmentation_level": 0.0, "sampler": {}}
    )
    stage = imagen.load_cascade(stages, slots={"sr1": slot}).stages[1]
    assert type(stage.guidance).__name__ == "NoGuidance"
    assert stage.augmentation_level == 0.0
    assert type(stage.sampler).__name__ == "DDIM"


def test_what_does_not_fit_in_a_slot_names_the_slot(stages):
    slot = OmegaConf.create({"sampler": {"_target_": "imagen.sampler.ancestral.LearnedVarianceDDPM", "num_steps": 2}})
    with pytest.raises(UserError, match=r"^sr1: sampler=ddpm_learned does not go with parameterization=v,"):
        imagen.load_cascade(stages, slots={"sr1": slot})


def test_stages_that_do_not_chain_are_refused(stages):
    with pytest.raises(UserError, match="chain"):
        imagen.load_cascade(stages[::-1])
    with pytest.raises(UserError, match="not a list"):
        imagen.load_cascade(stages[0])


def test_another_encoder_than_the_runs_is_refused(stages):
    other = OmegaConf.create({**TOY.text_encoder, "max_length": 5})
    with pytest.raises(UserError, match=r"text encoder 'hash' is not the one.*max_length"):
        imagen.load_cascade(stages, text_encoder=other)


@pytest.mark.parametrize("level", [-0.1, 1.5])
def test_an_augmentation_level_outside_0_to_1_is_refused(level):
    with pytest.raises(UserError, match=f"augmentation_level={level}"):
        build.build_module(compose("train", ["experiment=toy_sr32", f"augmentation_level={level}"]))


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        (lambda config: config.pop("schedule"), "is damaged or of another version: its config lacks schedule"),
        (lambda config: config["sampler"].update(_target_="imagen.sampler.DIM"), "imagen.sampler.DIM does not exist"),
    ],
)
def test_a_damaged_config_in_a_stage_is_told_in_one_sentence(stages, tmp_path, break_, said):
    weights = read_weights(stages[0])
    break_(weights.config)
    weights.save(tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=said) as caught:
        imagen.load_cascade([tmp_path / "broken.safetensors"])
    assert "\n" not in str(caught.value)


def test_a_clash_of_sampling_settings_is_told_before_any_network_is_built(monkeypatch):
    monkeypatch.setattr(build, "build_network", lambda cfg: pytest.fail("a network was built"))
    for override in ("guidance=autoguidance", "threshold=dynamic threshold.percentile=2.0", "sampler=ddpm_learned"):
        with pytest.raises(UserError, match=r"checkpoint|percentile|ddpm_learned"):
            build.build_module(compose("train", ["experiment=toy", *override.split()]))
