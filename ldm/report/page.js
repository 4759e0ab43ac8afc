"use strict";

/* A comparison: two pictures of one frame, the right one cut off at a divider that follows mouse, finger and keys.
   The range input carries the value for the keyboard and for screen readers; the pointer is followed on the stage. */
function compare(figure) {
  const stage = figure.querySelector(".stage");
  const range = figure.querySelector("input");
  const choices = [...figure.querySelectorAll("select")];

  function show(at) {
    const [left, right] = choices.map((choice) => choice.selectedOptions[0].text);
    range.value = at;
    range.setAttribute("aria-valuetext", `${left} on the left ${range.value} %, then ${right}`);
    stage.style.setProperty("--at", at + "%");
  }

  function choose() {
    for (const picture of stage.querySelectorAll("img")) {
      const [left, right] = choices.map((choice) => choice.value === picture.dataset.key);
      picture.classList.toggle("left", left);
      picture.classList.toggle("right", right && !left);
      picture.hidden = !left && !right;
    }
    show(range.value);
  }

  function follow(event) {
    const box = stage.getBoundingClientRect();
    show(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    range.focus({ preventScroll: true, focusVisible: false });
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  range.addEventListener("input", () => show(range.value));
  for (const choice of choices) choice.addEventListener("change", choose);
  choose();
}

document.querySelectorAll(".compare").forEach(compare);
