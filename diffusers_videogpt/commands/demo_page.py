"""The page of `videogpt demo`: give it a video or a picture, watch the clips arrive, step on with frames of one's own.

    with running_page(pipe) as url: ...

It listens to this machine alone unless told otherwise, and neither the page nor the server asks anything of the web. Pages
of others can't reach it through a visitor's browser: only names of this machine are answered.
"""

import html
import ipaddress
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .. import SAMPLE_VIDEO
from ..pipeline_videogpt import VideoGPTPipeline
from ..tasks.world_model import PLAY_STEPS
from ..video_io import READABLE, Video
from .demo_play import LISTEN, Plays, buttons_of, keys_of, save_play, show_frame
from .demo_rollout import (
    MAX_PREDICTED,
    PREVIEW_SIDE,
    Limits,
    Rollouts,
    Settings,
    Walk,
    format_psnr,
    psnr_by_clip,
    read_upload,
    write_views,
)
from .options import STEPS, steps_of
from .outputs import enlarge
from .predict import PICTURE_FPS, SAMPLE_HISTORY, frames_to_predict


try:
    import gradio as gr
    from starlette.middleware import Middleware
except ImportError as error:
    raise ImportError('The page needs Gradio: pip install ".[demo]" in the repository') from error

MINUTE, HOUR = 60, 3600  # seconds: how often files of past visits are looked for, and how old they may grow
# A visitor's place in the line stands beside the status, which is too low a box for it.
CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.block.status { min-height: 3.2rem; }
.block.status, .block.status .wrap { overflow: visible !important; }
.block.status .progress-text { top: 0 !important; }
img.played { width: 384px; max-width: 100%; image-rendering: pixelated; display: block; margin: 0 auto; }
"""
HEADLINE = """# What happens next?
Video-GPT sees the first frames of a video, or a picture, and predicts those that follow, clip after clip.
One prediction runs at a time; other visitors wait in line.
"""
STOPPED = "Stopped. The clips that were there stay; press **Predict** to begin anew."
WALK_HELP = """Predict one clip. Then keep it and go on, or draw on its last frame, or put a picture of your own in its place, and see
what follows from that."""
PLAY_HELP = """The model takes actions: **arrow keys** or the buttons steer what follows from the frames given. Pause to look at an
earlier frame; **Play** goes on from it."""
REFUSED = b"This page is not served under that name. Whoever runs it can allow it: videogpt demo --name NAME\n"
FONTS = ["system-ui", "sans-serif"]  # of the visitor's machine: nothing is fetched from the web


class OnlyTheseNames:
    """Refuses requests whose `Host` is no name of this machine.

    A page elsewhere can have its own name lead to this machine ("DNS rebinding"), and would then read this one through the
    browser of whoever visits it. Its requests carry its name. Addresses in numbers can't be led elsewhere.

    Args:
        app: the ASGI application behind it.
        names: allowed besides localhost, this machine's own names and addresses in numbers.
    """

    def __init__(self, app, names: list[str]):
        self.app = app
        self.names = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower(), *map(str.lower, names)}

    def allows(self, host: str) -> bool:
        name = host.strip().lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True

    async def __call__(self, scope, receive, send) -> None:
        hosts = [value.decode("latin-1") for key, value in scope.get("headers", ()) if key == b"host"]
        is_request = scope["type"] in ("http", "websocket")
        if not is_request or (len(hosts) == 1 and self.allows(hosts[0])):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": REFUSED})


def make_page(rollouts: Rollouts, limits: Limits, *, folder: str | Path, note: str | None = None) -> gr.Blocks:
    """The page for one model. Files are written below `folder`, and deleted as soon as Gradio has its copies.

    `note` is said of what a visitor brings, not of the sample.
    """
    pipe = rollouts.pipe
    window, clip_length = pipe.config.max_context_frames, pipe.config.frames_per_clip
    plays = Plays(rollouts) if pipe.transformer.config.num_actions is not None else None
    waiting = set()  # visitors whose prediction has been asked for, and has not begun

    def open_upload(path: str | None, values: tuple) -> tuple[Video, int, Settings]:
        settings = Settings(*values)
        if settings.seed is None:
            raise ValueError("The seed is empty: give a whole number.")
        video = read_upload(path, pipe, settings=settings, limits=limits)
        return video, min(settings.num_given, len(video.frames)), settings

    def look(visitor, target, path, *values):
        try:
            video, num_given, _ = open_upload(path, values)
        except ValueError:
            yield {upload: None, strip: None, comparison: None, scores: ""}
            raise
        height, width = video.frames.shape[1:3]
        rate = f" at {video.fps:.4g} frames/s" if video.fps else ""
        is_own = note is not None and Path(path).name != Path(SAMPLE_VIDEO).name
        yield {
            status: f"{Path(path).name}: {num_given} frames given, {len(video.frames) - num_given} more to compare with; "
            f"{width} × {height}{rate}. Press **Predict**.",
            warning: gr.update(value=note, visible=True) if is_own else gr.update(visible=False),
            strip: write_views(target, "upload", video=video, num_given=num_given, predicted=video.frames[:0])[0],
            comparison: None,
            scores: "",
            download: gr.update(value=None, interactive=False),
        }

    def use_the_sample(visitor, target, path, *values):
        yield {upload: SAMPLE_VIDEO}
        yield from look(visitor, target, SAMPLE_VIDEO, *values)

    def ask(request: gr.Request):
        waiting.add(request.session_hash)

    def predict(visitor, target, path, *values):
        if visitor not in waiting:  # pressed twice, or cancelled while another visitor had the model
            return
        video, num_given, settings = open_upload(path, values)
        given, truth = video.frames[:num_given], video.frames[num_given:]
        picture = write_views(target, "upload", video=video, num_given=num_given, predicted=given[:0])[0]
        yield {status: "Predicting the first clip …", strip: picture, comparison: None, scores: ""}
        if visitor not in waiting:
            return
        waiting.discard(visitor)
        began, first = time.perf_counter(), None
        for predicted in rollouts.clips((visitor, "predict"), given, settings=settings):
            seconds = time.perf_counter() - began
            first = first or seconds
            picture, movie, kept = write_views(
                target, Path(path).stem, video=video, num_given=num_given, predicted=predicted
            )
            state = "Done" if len(predicted) == settings.num_frames else "Going on"
            yield {
                status: f"{state}: {len(predicted)} of {settings.num_frames} frames in {seconds:.1f} s, the first clip after "
                f"{first:.1f} s.",
                strip: picture,
                comparison: movie,
                scores: format_psnr(
                    psnr_by_clip(predicted, truth, last_given=given[-1], frames_per_clip=settings.frames_per_clip)
                ),
                download: gr.update(value=kept, interactive=True),
            }
        if first is None or len(predicted) < settings.num_frames:
            yield {status: STOPPED}

    def stop(request: gr.Request):
        waiting.discard(request.session_hash)
        rollouts.interrupt((request.session_hash, "predict"))
        return STOPPED

    def show_walk(target, walk: Walk) -> dict:
        given, predicted = np.split(walk.frames, [walk.num_given])
        picture, movie, _ = write_views(
            target, "walk", video=Video(given, np.empty(0), walk.fps, None), num_given=len(given), predicted=predicted
        )
        scale = max(2 * PREVIEW_SIDE // max(walk.frames.shape[1:3]), 1)
        return {
            walked: walk,
            walk_status: f"{len(predicted)} frames predicted.",
            walk_strip: picture,
            walk_movie: movie,
            editor: enlarge(walk.frames[-1:], scale)[0],
            keep: gr.update(interactive=True),
            use_own: gr.update(interactive=True),
        }

    def start(visitor, target, path, *values):
        video, num_given, settings = open_upload(path, values)
        walk = Walk(video.frames[:num_given], num_given, video.fps or PICTURE_FPS, settings)
        rollouts.interrupt((visitor, "walk"))
        yield show_walk(target, rollouts.walk_on((visitor, "walk"), walk))

    def go_on(visitor, target, walk):
        yield show_walk(target, rollouts.walk_on((visitor, "walk"), walk))

    def go_on_from_own(visitor, target, walk, edited):
        if edited["composite"] is None:
            raise ValueError("There is no frame of yours: upload a picture into the editor, or press Start over.")
        yield show_walk(target, rollouts.walk_on((visitor, "walk"), walk, own_frame=edited["composite"]))

    def start_play(visitor, target, path, steps, *values):
        video, num_given, settings = open_upload(path, values)
        plays.begin(visitor, video.frames[:num_given], seed=settings.seed, num_inference_steps=steps)
        yield from play_on(visitor, target, None)

    def play_on(visitor, target, at):
        began, first = time.perf_counter(), None
        yield {play_status: "Playing …", play_save: gr.update(value=None, interactive=False)}
        for play in plays.run(visitor, at):
            number = play.player.num_steps
            first = number - 1 if first is None else first
            rate = (number - first) / (time.perf_counter() - began)
            yield {play_view: show_frame(play.player), play_status: f"Step {number}, {rate:.1f} a second."}
        yield {
            play_status: f"Paused after step {number}.",
            play_at: gr.update(maximum=max(number, 1), value=number, interactive=True),
            play_save: gr.update(value=save_play(play.player, target), interactive=True),
        }

    def pause(request: gr.Request):
        plays.pause(request.session_hash)

    def look_back(visitor, target, at):
        yield {play_view: show_frame(plays.of(visitor).player, at)}

    def leave(request: gr.Request):
        waiting.discard(request.session_hash)
        if plays is not None:
            plays.leave(request.session_hash)
        for tab in ("predict", "walk"):
            rollouts.interrupt((request.session_hash, tab))

    plain = {"show_label": False, "interactive": False, "buttons": []}
    looping = {"autoplay": True, "loop": True}
    with gr.Blocks(title="Video-GPT", analytics_enabled=False, delete_cache=(MINUTE, HOUR)) as page:
        gr.Markdown(HEADLINE)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                upload = gr.File(SAMPLE_VIDEO, label="Video or picture", elem_id="upload", height=120)
                use_sample = gr.Button("Use the sample video", size="sm")
                warning = gr.Markdown(visible=False, elem_id="warning")
            with gr.Column(scale=8, min_width=320), gr.Tabs():
                with gr.Tab("Predict"):
                    with gr.Row():
                        run = gr.Button("Predict", variant="primary", elem_id="run", scale=2, min_width=80)
                        cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=80)
                        download = gr.DownloadButton("Download", interactive=False, elem_id="download", min_width=80)
                    status = gr.Markdown("Press **Predict**.", elem_id="status", elem_classes="status")
                    comparison = gr.Video(**plain, **looping, height=330, elem_id="comparison")
                    strip = gr.Image(**plain, type="filepath", elem_id="strip")
                    scores = gr.Markdown(elem_id="scores")
                with gr.Tab("Step by step"):
                    gr.Markdown(WALK_HELP)
                    with gr.Row():
                        begin = gr.Button("Start over", variant="primary", elem_id="begin")
                        keep = gr.Button("Keep it, go on", interactive=False, elem_id="keep")
                        use_own = gr.Button("Go on from my frame", interactive=False, elem_id="use_own")
                    walk_status = gr.Markdown(elem_id="walk_status", elem_classes="status")
                    walk_strip = gr.Image(**plain, type="filepath", elem_id="walk_strip")
                    with gr.Row():
                        editor = gr.ImageEditor(
                            label="The last frame: draw on it",
                            image_mode="RGB",
                            layers=False,
                            sources=("upload", "clipboard"),
                            transforms=(),
                            canvas_size=(512, 512),
                            elem_id="editor",
                        )
                        walk_movie = gr.Video(**plain, **looping, height=350, elem_id="walk_movie")
                    walked = gr.State()
                if plays is not None:
                    with gr.Tab("Play"):
                        gr.Markdown(PLAY_HELP)
                        with gr.Row():
                            play_begin = gr.Button("Start over", variant="primary", elem_id="play_begin", min_width=80)
                            play_go_on = gr.Button("Play", elem_id="play_go_on", min_width=80)
                            play_pause = gr.Button("Pause", variant="stop", elem_id="play_pause", min_width=80)
                            play_save = gr.DownloadButton("Save", interactive=False, elem_id="play_save", min_width=80)
                        play_status = gr.Markdown(elem_id="play_status", elem_classes="status")
                        play_view = gr.HTML(elem_id="play_view")
                        with gr.Row():
                            acts = [
                                (gr.Button(label, elem_id=button, min_width=48), action)
                                for label, button, action in buttons_of(plays)
                            ]
                        play_at = gr.Slider(0, 1, 0, step=1, label="Step", interactive=False, elem_id="play_at")
                        play_steps = gr.Slider(
                            1,
                            max(2 * STEPS, 50),
                            pipe.config.num_inference_steps or PLAY_STEPS,
                            step=1,
                            label="Denoising steps",
                        )
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            gr.Markdown(f"{READABLE}; at most {limits.megabytes:g} MB and {limits.seconds:g} s.")
            with gr.Row():
                settings = [
                    gr.Slider(1, window, min(SAMPLE_HISTORY, window), step=1, label="Frames given"),
                    gr.Slider(
                        1,
                        MAX_PREDICTED,
                        min(frames_to_predict(pipe.config, SAMPLE_HISTORY, clip_length=clip_length), MAX_PREDICTED),
                        step=1,
                        label="Frames to predict",
                    ),
                    gr.Slider(1, max(2 * clip_length, 16), clip_length, step=1, label="Frames per clip"),
                    gr.Slider(1, 2 * STEPS, steps_of(None, pipe), step=1, label="Steps per clip"),
                    gr.Slider(1, 6, pipe.config.guidance_scale, step=0.1, label="Guidance (1: none)"),
                    gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, min_width=80),
                    gr.Number(0, label="Read fps (0: all)", minimum=0, maximum=120, min_width=80),
                ]

        def on(trigger, work: Callable, *, inputs: list, outputs: list, told: gr.Markdown, **limit):
            """Binds an event, which gets the visitor and a folder; what goes wrong is said in words, and the page goes on."""

            def event(request: gr.Request, *values):
                with tempfile.TemporaryDirectory(dir=folder) as target:
                    try:
                        yield from work(request.session_hash, target, *values)
                    except (ValueError, OSError) as error:
                        # Not in a notice that floats over the page: it would lie over the buttons.
                        yield {told: f"**That did not work.** {html.escape(str(error), quote=False)}"}

            return trigger(
                event,
                inputs,
                [*outputs, told],
                show_progress="minimal",
                show_progress_on=told,
                api_visibility="private",
                **limit,
            )

        # Whatever uses the model stands in one line.
        one = {"concurrency_id": "model", "concurrency_limit": 1}
        chosen, views = [upload, *settings], [strip, comparison, scores, download]
        on(page.load, look, inputs=chosen, outputs=[upload, *views, warning], told=status)
        on(upload.upload, look, inputs=chosen, outputs=[upload, *views, warning], told=status)
        on(use_sample.click, use_the_sample, inputs=chosen, outputs=[upload, *views, warning], told=status)
        # Gradio's own `cancels` can hit the event after the cancelled one, and its "once" drops a press that comes right
        # after one: a prediction ends by itself here, and `waiting` tells which presses count.
        at_once = {"queue": False, "api_visibility": "private"}
        on(
            run.click(ask, **at_once).then,
            predict,
            inputs=chosen,
            outputs=views,
            told=status,
            trigger_mode="multiple",
            **one,
        )
        cancel.click(stop, outputs=status, **at_once)
        walk_views = [walked, walk_strip, walk_movie, editor, keep, use_own]
        on(begin.click, start, inputs=chosen, outputs=walk_views, told=walk_status, **one)
        on(keep.click, go_on, inputs=[walked], outputs=walk_views, told=walk_status, **one)
        on(use_own.click, go_on_from_own, inputs=[walked, editor], outputs=walk_views, told=walk_status, **one)
        if plays is not None:
            play_views = [play_view, play_at, play_save]
            on(
                play_begin.click,
                start_play,
                inputs=[upload, play_steps, *settings],
                outputs=play_views,
                told=play_status,
                **one,
            )
            on(play_go_on.click, play_on, inputs=[play_at], outputs=play_views, told=play_status, **one)
            on(play_at.release, look_back, inputs=[play_at], outputs=[play_view], told=play_status)
            play_pause.click(pause, **at_once)
            for button, action in acts:
                button.click(hold_action(plays, action), **at_once)
            page.load(None, js=LISTEN % (json.dumps(keys_of(plays)), "act_idle"))
        page.unload(leave)
    return page


def hold_action(plays: Plays, action: int) -> Callable[[gr.Request], None]:
    """What a button of an action does."""

    def hold(request: gr.Request) -> None:
        plays.hold(request.session_hash, action)

    return hold


@contextmanager
def running_page(
    pipe: VideoGPTPipeline,
    limits: Limits | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    names: list[str] = (),
    note: str | None = None,
) -> Iterator[str]:
    """Serves the page and yields its address. At the end it is taken down and every file of its visitors deleted.

    Args:
        pipe: the model.
        limits: what may be uploaded.
        host: whom it listens to; by default this machine alone.
        port: by default the first free one from 7860.
        names: under which browsers may reach it, besides localhost, addresses in numbers and this machine's own name.
        note: said of what a visitor brings, in Markdown.

    Raises:
        OSError: the port is taken.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="videogpt-demo-") as folder:
        uploads, drawn = Path(folder, "uploads"), Path(folder, "drawn")
        drawn.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        rollouts = Rollouts(pipe)
        page = make_page(rollouts, limits, folder=drawn, note=note)
        try:
            _, url, _ = page.queue(max_size=16).launch(
                server_name=host,
                server_port=port,
                share=False,
                ssr_mode=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=f"{limits.megabytes}mb",
                allowed_paths=[SAMPLE_VIDEO],
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                state_session_capacity=64,
                theme=gr.themes.Soft(primary_hue="orange", secondary_hue="blue", font=FONTS, font_mono=["monospace"]),
                css=CSS,
                app_kwargs={"middleware": [Middleware(OnlyTheseNames, names=[host, *names])]},
            )
            yield url
        finally:
            page.close(verbose=False)
            rollouts.close()
