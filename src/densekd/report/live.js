"use strict";
(function () {
  const main = document.getElementById("main");
  const state = document.getElementById("state");
  const seconds = Number(document.documentElement.dataset.seconds || 3);
  let version = "";

  // What the reader has folded, ticked off or scrolled stays as it is when the page is renewed.
  function renew(text) {
    const open = new Set(Array.from(main.querySelectorAll("details[open] > summary"), (s) => s.textContent));
    const off = new Set(Array.from(main.querySelectorAll("[data-toggle]:not(:checked)"), (box) => box.dataset.toggle));
    const focused = document.activeElement && document.activeElement.dataset.toggle;
    const scrolled = Array.from(main.querySelectorAll(".scroll"), (box) => box.scrollLeft);
    main.innerHTML = text;
    main.querySelectorAll("details > summary").forEach((s) => { if (open.has(s.textContent)) s.parentElement.open = true; });
    main.querySelectorAll("[data-toggle]").forEach((box) => {
      if (off.has(box.dataset.toggle)) { box.checked = false; box.dispatchEvent(new Event("change", { bubbles: true })); }
      if (focused === box.dataset.toggle) box.focus();
    });
    main.querySelectorAll(".scroll").forEach((box, i) => { box.scrollLeft = scrolled[i] || 0; });
  }

  async function poll() {
    try {
      const answer = await fetch(`data.json?version=${encodeURIComponent(version)}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const data = await answer.json();
      state.textContent = data.state;
      if (data.body !== null) { renew(data.body); version = data.version; }
    } catch (error) {
      state.textContent = "densekd watch no longer answers: it was stopped. What is shown is its last state.";
    }
    setTimeout(poll, 1000 * seconds);
  }
  setTimeout(poll, 200);
})();
