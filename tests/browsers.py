"""The Chromium of the system, for tests of pages."""

from __future__ import annotations

import os
import shutil

import pytest

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("there is no chromium, and CI needs one; install Debian's package chromium")
        pytest.skip("there is no chromium; install Debian's package chromium to test pages in a browser")
    return found


FAINT = """() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = colour => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = c => c.slice(0, 3).map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const behind = e => { for (; e; e = e.parentElement) {
        const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } };
    const faint = [];
    for (const e of document.querySelectorAll('main *:not(svg *), header *, svg text')) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (!own || e.closest('.sr, .empty, details:not([open])')) continue;
        const style = getComputedStyle(e);
        const [a, b] = [light(rgba(e.tagName === 'text' ? style.fill : style.color)), light(behind(e))];
        const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (contrast < 4.5) faint.push([e.tagName, e.className, e.textContent.slice(0, 30), contrast]);
    }
    return faint;
}"""
"""Finds texts whose contrast with what is behind them is below 4.5 (WCAG AA), in the colours that are painted."""
