"""The page: what visitors see, and what happens when they press something."""

import contextlib
import html
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr
import pandas as pd
from gradio import themes
from starlette.middleware import Middleware

from i3d_jax import cli, weights
from i3d_jax.demo import analysis
from i3d_jax.demo.analysis import Analysis, Network
from i3d_jax.demo.visits import Visits
from i3d_jax.video import VideoError

MAX_WAITING = 20  # Visitors who wait for their turn; more are told to come back.
CHOICES = 5  # Classes whose heat maps one can ask for.
STATE_SECONDS = 3600  # After which the results of a visitor who stays are removed.
STEP = 0.04  # Seconds: a frame at 25 per second.

INTRODUCTION = """# What happens in this video?
Drop a video of up to {seconds} s, or record one with your webcam. A network names the action, says
when it happens, and shows where it looked. The video stays on this server until you leave."""
FLOW_KEY = """In the motion, colours are directions: red to the right, yellow down, cyan and blue to
the left, violet up; white stands still."""
# Of lines; P. Tol, Colour Schemes (2021), "bright": all can tell them apart.
COLOURS = "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb"
# Gradio's own fonts come from another host, so the page takes the system's.
THEME = themes.Base(
    primary_hue="blue",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
# The browser asks no other host for anything. Gradio's plots need "unsafe-eval".
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)


class Limits(NamedTuple):
    """What the page takes.

    Attributes:
      seconds: length of the longest video.
      megabytes: size of the largest file.
      top_k: classes that are shown.
    """

    seconds: int = 60
    megabytes: int = 200
    top_k: int = 5


class Guard:
    """Refuses requests in which the server would fetch addresses, and sets security headers."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif "/file=http" in scope["path"] or "/proxy=" in scope["path"]:
            start = {"type": "http.response.start", "status": 403, "headers": []}
            await send_with_headers(start)
            await send({"type": "http.response.body", "body": b"not allowed\n"})
        else:
            await self.app(scope, receive, send_with_headers)


class _LeftError(Exception):
    """The visitor has left: nobody waits for what is being computed."""


class Actions:
    """What the page does when a visitor presses something.

    Args:
      networks: that the page offers, by label.
      limits: of videos.
      visits: the files of visitors.
    """

    def __init__(self, networks: dict[str, Network], limits: Limits, visits: Visits):
        self._networks, self._limits, self._visits = networks, limits, visits

    def analyse(
        self,
        upload: str | None,
        label: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio finds it there.
    ) -> list[Any]:
        """Analyses a video; returns what the page shows of all of it."""
        if upload is None:
            raise gr.Error("Choose or record a video first.", print_exception=False)
        network, visitor = self._networks[label], _visitor(request)
        name = pathlib.Path(upload).name
        with _telling_errors(name):
            path = self._visits.begin(visitor, pathlib.Path(upload))
            advance = self._progress(visitor, progress, "Classifying")
            advance(0)
            found = analysis.analyse(path, network, self._limits.seconds, advance)
            advance = self._progress(visitor, progress, "Computing heat maps")
            best = analysis.likeliest(found, CHOICES)
            analysis.explain(found, network, best[0], advance)
            timeline = self._visits.download(visitor, f"{path.stem}.json")
            analysis.write_timeline(found, timeline, self._limits.top_k)
            self._visits.keep(visitor, timeline)
        for each in found.damage:
            gr.Warning(f"{name}: {each}")
        streams = [*found.heat[best[0]]]
        last = analysis.last_second(found)
        top = analysis.shares_of_video(found, self._limits.top_k)
        return [
            found,
            gr.Label(top, visible=True),
            gr.Column(visible=True),
            *_curves(found, self._limits.top_k),
            gr.Slider(maximum=round(last, 3), value=min(round(last / 2, 2), last)),
            gr.Dropdown([(found.classes[each], each) for each in best], value=best[0]),
            gr.Radio(streams, value=streams[0], visible=len(streams) > 1),
            gr.DownloadButton(value=str(timeline)),
            gr.Button(visible=True),
            gr.DownloadButton(visible=False),
        ]

    def explain(
        self,
        found: Analysis | None,
        number: int | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> None:
        """Computes the heat maps of another class."""
        if found is None or number is None or number in found.heat:
            return
        visitor = _visitor(request)
        with _telling_errors(found.path.name):
            self._check_here(visitor)
            advance = self._progress(visitor, progress, "Computing heat maps")
            analysis.explain(found, self._networks[found.label], number, advance)

    def show(
        self, found: Analysis | None, seconds: float, number: int | None, stream: str | None
    ) -> list[Any]:
        """What the page shows of one time."""
        if found is None or number not in found.heat:
            return [gr.skip()] * 3
        with _telling_errors(found.path.name):
            stream = stream if stream in found.heat[number] else next(iter(found.heat[number]))
            frame = analysis.frame_with_heat(found, seconds, number, stream)
            motion = analysis.flow_at(found, seconds)
        return [frame, motion, analysis.shares_at(found, seconds, self._limits.top_k)]

    def make_features(
        self,
        found: Analysis | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Computes the file of features."""
        if found is None:
            return [gr.skip()] * 2
        visitor = _visitor(request)
        with _telling_errors(found.path.name):
            self._check_here(visitor)
            target = self._visits.download(visitor, f"{found.path.stem}.npz")
            advance = self._progress(visitor, progress, "Computing features")
            analysis.write_features(found, self._networks[found.label], target, advance)
            self._visits.keep(visitor, target)
        return [gr.Button(visible=False), gr.DownloadButton(value=str(target), visible=True)]

    def leave(self, request: gr.Request) -> None:
        """Removes the files of a visitor who has left; ends what is computed for him."""
        self._visits.forget(_visitor(request))

    def expire(self, found: Analysis | None) -> None:
        """Removes the files of a visitor whose results are too old."""
        if found is not None:
            self._visits.forget_owner_of(found.path)

    def _check_here(self, visitor: str) -> None:
        if not self._visits.is_here(visitor):
            raise FileNotFoundError

    def _progress(self, visitor: str, progress: gr.Progress, what: str) -> Callable[[float], None]:
        """A function that shows progress, and ends the work for visitors who have left."""

        def advance(part: float) -> None:
            if not self._visits.is_here(visitor):
                raise _LeftError
            progress(part, desc=what)

        return advance


def _visitor(request: gr.Request) -> str:
    return request.session_hash or ""


@contextlib.contextmanager
def _telling_errors(name: str) -> Iterator[None]:
    """Shows errors in one line, which names the visitor's file and nothing of the server."""
    try:
        yield
    except VideoError as error:
        reason = error.reason
    except _LeftError:
        reason = "you have left"
    except FileNotFoundError:
        reason = "is not on the server any more: choose it again"
    except weights.WeightsError as error:
        cli.print_error(error)  # It names the file of the weights.
        reason = "this network has no features of all frames"
    except Exception as error:  # noqa: BLE001 - the server goes on.
        cli.print_error(f"{name}: {cli.one_line(error)}")
        memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        reason = "needs more memory than there is" if memory else "an error of the server"
    else:
        return
    raise gr.Error(cli.escape_unprintable(f"{name}: {reason}"), print_exception=False) from None


def build(networks: dict[str, Network], limits: Limits, visits: Visits) -> gr.Blocks:
    """The page.

    Args:
      networks: that it offers, by label; the first is chosen at first.
      limits: of videos.
      visits: the files of visitors.
    """
    actions = Actions(networks, limits, visits)
    with gr.Blocks(
        title="What happens in this video?",
        analytics_enabled=False,
        delete_cache=(60, STATE_SECONDS),
    ) as blocks:
        state = gr.State(time_to_live=STATE_SECONDS, delete_callback=actions.expire)
        gr.Markdown(INTRODUCTION.format(seconds=limits.seconds))
        with gr.Row():
            with gr.Column():
                upload = _upload()
                label = gr.Dropdown([*networks], label="Network", visible=len(networks) > 1)
                button = gr.Button("Analyse", variant="primary")
            with gr.Column():
                top = gr.Label(label="The whole video", num_top_classes=limits.top_k)
        results = _Results(limits)
        run: dict[str, Any] = dict(
            concurrency_id="network", concurrency_limit=1, api_visibility="private"
        )
        show: dict[str, Any] = dict(
            fn=actions.show,
            inputs=[state, results.time, results.explained, results.stream],
            outputs=[results.frame, results.motion, results.now],
            show_progress="hidden",
            concurrency_id="show",
            concurrency_limit=1,
            api_visibility="private",
        )
        button.click(
            actions.analyse,
            [upload, label],
            [state, top, *results.of_video],
            show_progress_on=[top],
            **run,
        ).success(**show)
        results.explained.input(
            actions.explain,
            [state, results.explained],
            None,
            show_progress_on=[results.frame],
            **run,
        ).success(**show)
        gr.on([results.time.change, results.stream.input], trigger_mode="always_last", **show)
        results.plot.select(_chosen_time, None, [results.time], api_visibility="private")
        results.make.click(actions.make_features, [state], [results.make, results.features], **run)
        blocks.unload(actions.leave)
    return blocks.queue(default_concurrency_limit=1, max_size=MAX_WAITING)


class _Results:
    """The part of the page that is shown once there are results."""

    def __init__(self, limits: Limits):
        with gr.Column(visible=False) as self.column:
            gr.Markdown("### Classes over time\nDrag over a part to go there.")
            self.plot = gr.LinePlot(
                x="seconds",
                y="probability",
                color="class",
                colors_in_legend=[],
                y_lim=[0, 1],
                height=260,
            )
            # The plot's own legend is cut off on narrow screens.
            self.legend = gr.HTML()
            self.time = gr.Slider(0, 1, step=STEP, label="Time in seconds", buttons=[])
            with gr.Row():
                shown: dict[str, Any] = dict(buttons=["download", "fullscreen"], interactive=False)
                self.frame = gr.Image(label="Where the network looked", format="jpeg", **shown)
                self.motion = gr.Image(label="Motion to the next frame", format="png", **shown)
            with gr.Row():
                with gr.Column():
                    self.now = gr.Label(label="At this time", num_top_classes=limits.top_k)
                with gr.Column():
                    self.explained = gr.Dropdown(label="Show where the network saw")
                    self.stream = gr.Radio(label="In", visible=False)
                    gr.Markdown(FLOW_KEY)
                    self.timeline = gr.DownloadButton("Download the classes over time (JSON)")
                    self.make = gr.Button("Compute features for a download")
                    self.features = gr.DownloadButton(
                        "Download the features (NumPy)", visible=False
                    )

    @property
    def of_video(self) -> list[Any]:
        """What `Actions.analyse` sets, after the state and the label."""
        return [
            self.column,
            self.plot,
            self.legend,
            self.time,
            self.explained,
            self.stream,
            self.timeline,
            self.make,
            self.features,
        ]


def _curves(found: Analysis, count: int) -> tuple[Any, str]:
    """The plot of the likeliest classes, and its legend."""
    names = [found.classes[number] for number in analysis.likeliest(found, count)]
    colours = dict(zip(names, itertools.cycle(COLOURS)))
    legend = " ".join(
        f'<span style="white-space: nowrap; margin-right: 1em">'
        f'<span style="color: {colour}">&#9632;</span> {html.escape(name)}</span>'
        for name, colour in colours.items()
    )
    table = pd.DataFrame(analysis.curves(found, count))
    return gr.LinePlot(table, color_map=colours), legend


def _upload() -> gr.Video:
    """Where the visitor's video goes."""
    made = gr.Video(sources=["upload", "webcam"], label="Video", height=380)
    keep = made.async_move_resource_to_block_cache

    async def keep_files(url_or_file_path: str | pathlib.Path | None) -> str | None:
        # The server would fetch it.
        if str(url_or_file_path).startswith(("http://", "https://")):
            raise gr.Error("wanted a file, not an address", print_exception=False)
        return await keep(url_or_file_path)

    made.async_move_resource_to_block_cache = keep_files
    return made


def _chosen_time(event: gr.SelectData) -> float:
    """The middle of the part of the plot that was marked."""
    start, end = event.index
    return round((start + end) / 2 / STEP) * STEP


def serve(blocks: gr.Blocks, host: str, port: int, limits: Limits) -> None:
    """Serves the page in threads of this process, and returns.

    Args:
      blocks: the page.
      host: address to listen at.
      port: to listen at, which is free.
      limits: of videos.
    """
    blocks.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        max_file_size=f"{limits.megabytes}mb",
        theme=THEME,
        app_kwargs={"middleware": [Middleware(Guard)]},
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inline=False,
        inbrowser=False,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        allowed_paths=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
