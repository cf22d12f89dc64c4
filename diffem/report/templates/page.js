"use strict";
// The slider over rounds: the last round is shown where scripts are off.
for (const slider of document.querySelectorAll("input[type=range][data-rounds]")) {
  const rounds = slider.dataset.rounds.split(" ");
  const said = document.getElementById(slider.id + "-said");
  const show = () => {
    const shown = rounds[slider.value];
    for (const part of document.querySelectorAll("[data-round]")) {
      part.hidden = part.dataset.round !== shown;
    }
    said.textContent = "round " + shown;
    slider.setAttribute("aria-valuetext", "round " + shown);
  };
  slider.addEventListener("input", show);
  show(); // a browser may restore where the slider was
}
// The value of the point under the pointer or the finger.
const tip = document.getElementById("tip");
const hide = () => { tip.hidden = true; };
const tell = (event) => {
  const point = event.target.closest("circle, .expected");
  if (!point) return hide();
  tip.textContent = point.querySelector("title").textContent;
  tip.hidden = false;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 4;
  tip.style.left = Math.max(0, Math.min(event.pageX + 12, room)) + "px";
  tip.style.top = event.pageY + 14 + "px";
};
for (const chart of document.querySelectorAll(".chart")) {
  chart.addEventListener("pointermove", tell);
  chart.addEventListener("pointerdown", tell);
  chart.addEventListener("pointerleave", hide);
}
// A process that was killed could not say so in the page.
const status = document.querySelector("[data-written]");
if (status) {
  const age = Date.now() / 1000 - status.dataset.written;
  document.getElementById("old").hidden = !(age > status.dataset.patience);
}
