"""Video-GPT among diffusers' other parts: its autoencoder swapped, its first frame painted, its clips repainted by others."""

import pytest
import torch
from diffusers import (
    AnimateDiffVideoToVideoPipeline,
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    MotionAdapter,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from text_encoders import WIDTH, make_text_encoder, make_tokenizer
from tiny_models import tiny_autoencoder_of

from diffusers_videogpt import BUNDLED_MODEL, SAMPLE_VIDEO


STEPS = {"num_inference_steps": 2, "height": 32, "width": 32}


@pytest.fixture
def text_to_image() -> StableDiffusionPipeline:
    """A Stable Diffusion of 8 and 16 channels."""
    torch.manual_seed(0)
    small = {"block_out_channels": (8, 16), "norm_num_groups": 2, "layers_per_block": 1, "sample_size": 4}
    unet = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        **small,
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(latent_channels=4, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, **blocks),
        text_encoder=make_text_encoder(),
        tokenizer=make_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_autoencoders_swap_by_one_argument(make_tiny_pipe, make_tiny_transformer, tmp_path):
    """The one it was saved with, a distilled one, and the bundled model's; what lies between is the same transformer."""
    bundled, pipe = AutoencoderKL.from_pretrained(BUNDLED_MODEL, subfolder="vae"), make_tiny_pipe()
    channels = bundled.config.latent_channels
    random = AutoencoderKL.from_config(bundled.config).eval()
    pipe.register_modules(vae=random, transformer=make_tiny_transformer(in_channels=channels))
    pipe.save_pretrained(tmp_path)
    autoencoders = {
        "its own": {},
        "distilled": {"vae": tiny_autoencoder_of(latent_channels=channels)},
        "bundled": {"vae": bundled},
    }
    frames = {}
    for name, argument in autoencoders.items():
        pipe = DiffusionPipeline.from_pretrained(tmp_path, **argument)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        video = pipe.prepare_frames(SAMPLE_VIDEO, 32, 32)[0, :3] / 2 + 0.5
        frames[name] = pipe(video=video, num_frames=4, generator=generator, output_type="pt", **STEPS).frames
        assert frames[name].shape == (1, 4, 3, 32, 32) and frames[name].isfinite().all()
        # Encoded and decoded alone, by this autoencoder: the pipeline scales its latents as it wants them.
        latents = pipe.encode_given(video=video, height=32, width=32, generator=torch.Generator().manual_seed(0))
        decoded = pipe.decode_latents(latents, "pt")
        if name == "bundled":
            assert (decoded[0] - video).abs().mean() < 0.1
    assert not torch.allclose(frames["its own"], frames["distilled"], atol=1e-2)
    assert not torch.allclose(frames["its own"], frames["bundled"], atol=1e-2)


def test_from_a_text_to_a_picture_to_a_video_to_a_repainted_video(make_tiny_pipe, text_to_image):
    prompt = "a red ball falls"
    first = text_to_image(prompt, generator=torch.Generator().manual_seed(0), **STEPS).images[0]

    pipe = make_tiny_pipe()
    frames = pipe(image=first, num_frames=4, generator=torch.Generator().manual_seed(0), **STEPS).frames[0]
    assert len(frames) == 4 and {frame.size for frame in frames} == {first.size}

    # Frame by frame, by the very parts that painted the picture.
    image_to_image = StableDiffusionImg2ImgPipeline.from_pipe(text_to_image)
    image_to_image.set_progress_bar_config(disable=True)
    repainted = image_to_image([prompt] * 4, image=frames, strength=0.5, num_inference_steps=2).images
    assert len(repainted) == 4 and {frame.size for frame in repainted} == {first.size}

    # All frames at once.
    adapter = MotionAdapter((8, 16), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=2)
    video_to_video = AnimateDiffVideoToVideoPipeline.from_pipe(text_to_image, motion_adapter=adapter)
    video_to_video.set_progress_bar_config(disable=True)
    repainted = video_to_video([first, *frames], prompt, strength=0.5, **STEPS).frames[0]
    assert len(repainted) == 5

    # And back: the repainted video is the history of the next clip.
    more = pipe(video=repainted, num_frames=2, generator=torch.Generator().manual_seed(0), **STEPS).frames[0]
    assert len(more) == 2
