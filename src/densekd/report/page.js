"use strict";
(function () {
  const $ = (selector, root) => Array.from((root || document).querySelectorAll(selector));

  // A line's checkbox hides it in every chart.
  document.addEventListener("change", (event) => {
    const row = event.target.dataset && event.target.dataset.toggle;
    if (row === undefined) return;
    $(`[data-row="${row}"]`).forEach((line) => line.classList.toggle("off", !event.target.checked));
  });

  const left = document.getElementById("left");
  const right = document.getElementById("right");
  const mix = document.getElementById("mix");

  function place(range) {
    const stack = range.parentElement;
    stack.style.setProperty("--x", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${left.value} ${range.value} %, ${right.value} ${100 - range.value} %`);
  }

  function choose() {
    $(".layer").forEach((layer) => {
      layer.classList.toggle("left", layer.dataset.layer === left.value);
      layer.classList.toggle("right", layer.dataset.layer === right.value);
    });
    $(".tag-left").forEach((tag) => { tag.textContent = left.value; });
    $(".tag-right").forEach((tag) => { tag.textContent = right.value; });
    $(".wipe").forEach(place);
  }

  if (left && right) {
    left.addEventListener("change", choose);
    right.addEventListener("change", choose);
    $(".wipe").forEach((range) => range.addEventListener("input", () => place(range)));
    choose();
  }
  if (mix) {
    const images = document.querySelector(".images");
    const blend = () => images.style.setProperty("--mix", `${mix.value}%`);
    mix.addEventListener("input", blend);
    blend();
  }

  // A printed page shows what is folded on the screen.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = $("details:not([open])");
    opened.forEach((part) => { part.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));
})();
