"use strict";
(function () {
  const $ = (id) => document.getElementById(id);
  const models = Array.from(document.querySelectorAll(".panel.model"));
  const mostBytes = Number(document.documentElement.dataset.mostBytes);
  const RECENT = 9; // frames of the camera whose median time is shown
  let last = null; // the newest answer
  let given = null; // {blob, name}: what it is of
  let camera = null; // the stream while the camera is on
  let asked = 0; // number of the newest question: older answers are left out
  let recent = models.map(() => []);

  function trouble(text) {
    $("trouble").textContent = text;
    $("trouble").hidden = !text;
  }

  function busy(yes, text) {
    document.body.classList.toggle("busy", yes);
    if (text !== undefined) $("state").textContent = text;
  }

  async function ask(blob, name, more = "") {
    const address = `answer?side=${$("side").value}&name=${encodeURIComponent(name.slice(-100))}${more}`;
    let reply;
    try {
      reply = await fetch(address, { method: "POST", body: blob, headers: { "Content-Type": "application/octet-stream" } });
    } catch (error) {
      throw new Error("densekd serve no longer answers: it was stopped, or it refused the upload.");
    }
    const answer = await reply.json().catch(() => ({ error: `the server answered with status ${reply.status}` }));
    if (!reply.ok) throw new Error(answer.error);
    return answer;
  }

  async function show(blob, name) {
    stopCamera();
    const number = ++asked;
    trouble("");
    if (blob.size > mostBytes) {
      busy(false, "");
      trouble(`${name} has ${(blob.size / 1e6).toFixed(1)} MB; expected at most ${mostBytes / 1e6} MB. Make it smaller first.`);
      return;
    }
    busy(true, `The networks look at ${name} …`);
    try {
      const answer = await ask(blob, name);
      if (number !== asked) return;
      given = { blob, name };
      recent = models.map(() => []);
      draw(answer);
      busy(false, `${answer.name}: ${sizes(answer)}.`);
    } catch (error) {
      if (number !== asked) return;
      busy(false, "");
      trouble(error.message);
    }
  }

  const chosen = (select) => {
    const model = models[Number(select.value)];
    return model ? model.dataset.title : "image";
  };

  const sizes = (answer) => {
    const [given, seen] = [answer.given.join("×"), answer.seen.join("×")];
    return given === seen ? `${given} pixels` : `${given} pixels, seen by the networks at ${seen}`;
  };

  function milliseconds(value) {
    if (value >= 10000) return [(value / 1000).toFixed(1), "s"];
    return [value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2), "ms"];
  }

  function element(name, text, parent) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  function fill(layer, picture) {
    layer.replaceChildren();
    layer.classList.toggle("map", Boolean(picture && picture.map));
    if (!picture) return;
    if (picture.svg) layer.innerHTML = picture.svg;
    else { const image = element("img", undefined, layer); image.alt = ""; image.src = picture.uri; }
  }

  function legend(place, found) {
    place.replaceChildren();
    for (const entry of found.entries) {
      const part = element("span", undefined, place);
      element("i", undefined, part).style.background = entry.colour;
      part.append(entry.name + " ");
      element("b", entry.value, part);
    }
    if (found.scale) {
      const part = element("span", undefined, place);
      part.className = "scale";
      part.append(found.scale.from);
      element("i", undefined, part).style.background = `linear-gradient(to right, ${found.scale.colours.join(", ")})`;
      part.append(found.scale.to);
    }
    if (found.text) element("span", found.text, place);
  }

  function median(values) {
    const ordered = [...values].sort((a, b) => a - b);
    return ordered[Math.floor(ordered.length / 2)];
  }

  function draw(answer) {
    last = answer;
    document.body.classList.add("given");
    const [width, height] = answer.seen;
    for (const stack of document.querySelectorAll(".stack")) {
      stack.classList.remove("empty");
      stack.style.setProperty("--ratio", `${width}/${height}`);
      stack.style.setProperty("--wide", width / height);
      stack.style.setProperty("--photo", `url(${answer.photo})`);
    }
    $("size").textContent = `${width}×${height}`;
    $("name").textContent = answer.name;
    models.forEach((panel, i) => {
      const one = answer.answers[i];
      recent[i] = [...recent[i], one.milliseconds].slice(-RECENT);
      const [value, unit] = milliseconds(median(recent[i]));
      const time = panel.querySelector(".time");
      time.replaceChildren();
      element("b", value, time);
      time.append(` ${unit}`);
      fill(panel.querySelector(".layer"), one.picture);
      legend(panel.querySelector(".found"), one.legend);
    });
    $("mixed").hidden = !answer.answers.some((one) => one.picture.map);
    if ($("views")) $("views").hidden = false;
    verdict(answer);
    wipe();
  }

  function verdict(answer) {
    const times = recent.map(median);
    const parts = [];
    if (times.length > 1) {
      const quick = times.indexOf(Math.min(...times)), slow = times.indexOf(Math.max(...times));
      const factor = times[slow] / times[quick];
      parts.push(factor < 1.2 ? `${models.length === 2 ? "Both" : "All"} take about the same time on this image.` : `${models[quick].dataset.title} is ${factor.toFixed(factor < 10 ? 1 : 0)} times as fast as ${models[slow].dataset.title} on this image.`);
    }
    parts.push(...answer.remarks);
    $("verdict").textContent = parts.join(" ");
    $("verdict").hidden = !parts.length;
  }

  // The slider between two answers.
  function wipe() {
    if (!$("wiped")) return;
    const on = Boolean(last) && document.querySelector("[name=view]:checked").value === "wipe";
    $("wiped").hidden = !on;
    document.body.classList.toggle("wiping", on);
    if (!on) return;
    for (const side of ["left", "right"]) {
      const select = $(side), layer = $("both").querySelector(`.layer.${side}`);
      const one = last.answers[Number(select.value)];
      fill(layer, one && one.picture);
      const name = chosen(select);
      layer.setAttribute("aria-label", name);
      $("both").querySelector(`.tag-${side}`).textContent = name;
    }
    place();
  }

  function place() {
    const range = $("both").querySelector(".wipe");
    $("both").style.setProperty("--x", `${range.value}%`);
    const [a, b] = ["left", "right"].map((side) => chosen($(side)));
    range.setAttribute("aria-valuetext", `${a} ${range.value} %, ${b} ${100 - range.value} %`);
  }

  if ($("wiped")) {
    document.querySelectorAll("[name=view]").forEach((radio) => radio.addEventListener("change", wipe));
    $("left").addEventListener("change", wipe);
    $("right").addEventListener("change", wipe);
    $("both").querySelector(".wipe").addEventListener("input", place);
  }

  const blend = () => {
    document.querySelector(".panels").style.setProperty("--mix", `${$("mix").value}%`);
    if ($("wiped")) $("wiped").style.setProperty("--mix", `${$("mix").value}%`);
  };
  $("mix").addEventListener("input", blend);
  blend();

  // Files: chosen, dropped anywhere on the page, or pasted.
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    const [file] = $("file").files;
    if (file) show(file, file.name);
    $("file").value = ""; // the same file may be chosen again
  });
  $("side").addEventListener("change", () => { if (given && !camera) show(given.blob, given.name); });
  let depth = 0; // of the elements that a dragged file has entered
  document.addEventListener("dragenter", (event) => { event.preventDefault(); depth += 1; $("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); if (!depth) $("drop").classList.remove("over"); });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    $("drop").classList.remove("over");
    const files = event.dataTransfer ? event.dataTransfer.files : [];
    if (files.length) show(files[0], files[0].name);
    else trouble("What was dropped is no file. Save the image first, then drop the file.");
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData ? event.clipboardData.files : [];
    if (file) { event.preventDefault(); show(file, file.name || "the pasted image"); }
  });

  // The camera: one frame at a time; the next is taken when the networks have answered.
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;

  function stopCamera() {
    if (!camera) return;
    camera.getTracks().forEach((track) => track.stop());
    camera = null;
    video.srcObject = null;
    $("camera").textContent = "Use the camera";
    $("camera").setAttribute("aria-pressed", "false");
  }

  function frame() {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  }

  async function startCamera() {
    trouble("");
    if (!navigator.mediaDevices) {
      trouble("The browser gives the camera only to pages of this machine: open this page at http://127.0.0.1 or http://localhost (ssh -L brings a port of another machine here).");
      return;
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, height: { ideal: 480 } }, audio: false });
    } catch (error) {
      const why = { NotAllowedError: "the browser was not allowed to use it", NotFoundError: "there is none", NotReadableError: "another program uses it" };
      trouble(`The camera cannot be used: ${why[error.name] || error.message}.`);
      return;
    }
    camera = stream;
    const number = ++asked;
    given = null;
    recent = models.map(() => []);
    $("camera").textContent = "Stop the camera";
    $("camera").setAttribute("aria-pressed", "true");
    video.srcObject = stream;
    busy(true, "The camera starts …");
    try {
      await video.play();
      let before = performance.now(), rate = 0;
      while (camera === stream && number === asked) {
        const answer = await ask(await frame(), "camera", "&once=1");
        if (camera !== stream || number !== asked) return;
        draw(answer);
        const now = performance.now();
        rate = rate ? 0.8 * rate + 0.2 * 1000 / (now - before) : 1000 / (now - before);
        before = now;
        busy(true, `Camera: ${sizes(answer)}, ${rate.toFixed(1)} images/s with sending and drawing.`);
      }
    } catch (error) {
      if (camera !== stream) return; // it was stopped meanwhile
      stopCamera();
      busy(false, "");
      trouble(error.message);
    }
  }

  $("camera").addEventListener("click", () => {
    if (!camera) { startCamera(); return; }
    stopCamera();
    asked += 1;
    busy(false, "The camera is off; its last frame is shown.");
  });
})();
