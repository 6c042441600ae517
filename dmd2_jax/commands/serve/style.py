"""The looks of the page."""

__all__ = ["STYLE"]

STYLE = """
.gradio-container { width: 100%; max-width: 78rem !important; margin: 0 auto !important; }
.gradio-container .html-container { padding: 0 !important; }
#top h1 { font-size: 1.5rem; font-weight: 600; margin: 0.6rem 0 0.1rem; }
#top p { color: var(--body-text-color-subdued); margin: 0 0 0.6rem;
         font-variant-numeric: tabular-nums; }
.gradio-container h2 { font-size: 1.15rem; font-weight: 600; margin: 1.4rem 0 0;
                       padding-top: 1rem; border-top: 1px solid var(--border-color-primary); }
.gradio-container h3 { font-size: 1rem; font-weight: 600; margin: 0 0 0.5rem; }
#draw, #next { white-space: nowrap; font-size: 1rem; padding: 0.5rem 0.6rem; }
.gradio-container p, .gradio-container h1 { overflow-wrap: anywhere; }
.soft { color: var(--body-text-color-subdued); }
.silent { display: none; }
.wait, .fault { margin: 0 0 0.6rem; padding: 0.5rem 0.8rem; border-radius: 6px;
                background: var(--background-fill-secondary); }
.fault { border-left: 4px solid #b3520a; }
.pictures { display: grid; gap: 8px; max-width: 19.5rem;
            grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
.pictures figure { margin: 0; }
.pictures img { width: 100%; border-radius: 4px; display: block; }
.pictures img.pixels { image-rendering: pixelated; }
.pictures figcaption { font-size: 0.8rem; text-align: center;
                       color: var(--body-text-color-subdued); }
.figures { margin: 0.6rem 0 0; font-variant-numeric: tabular-nums; }
#grid img, #curves img { width: 100%; border-radius: 6px; }
#grid img { image-rendering: pixelated; }
"""
