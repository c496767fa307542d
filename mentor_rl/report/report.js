"use strict";
// Filters prompts, and walks through them by the arrow keys. Reads text, never writes markup.
const cards = Array.from(document.querySelectorAll(".card"));
const search = document.getElementById("search");
const count = document.getElementById("count");

function shown() {
  return cards.filter((card) => !card.hidden);
}

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const card of cards) {
    const text = card.querySelector(".prompt").textContent.toLowerCase();
    card.hidden = !words.every((word) => text.includes(word));
  }
  count.textContent = words.length ? `${shown().length} of ${cards.length}` : "";
}

// The neighbour in the direction of the key: along the line for left and right, on the next line for up and down.
function neighbour(card, key) {
  const all = shown();
  const at = all.indexOf(card);
  if (key === "Home") return all[0];
  if (key === "End") return all[all.length - 1];
  if (key === "ArrowRight") return all[at + 1];
  if (key === "ArrowLeft") return all[at - 1];
  const down = key === "ArrowDown";
  const own = card.getBoundingClientRect();
  const line = down ? all.slice(at + 1) : all.slice(0, at).reverse();
  const others = line.filter((each) => Math.abs(each.getBoundingClientRect().top - own.top) > 4);
  const top = others.length ? others[0].getBoundingClientRect().top : 0;
  const next = others.filter((each) => Math.abs(each.getBoundingClientRect().top - top) < 4);
  const distance = (each) => Math.abs(each.getBoundingClientRect().left - own.left);
  return next.sort((a, b) => distance(a) - distance(b))[0];
}

const KEYS = ["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"];
document.addEventListener("keydown", (event) => {
  const card = event.target.closest ? event.target.closest(".card") : null;
  if (event.key === "/" && search && event.target !== search) {
    event.preventDefault();
    search.focus();
  } else if (event.key === "Escape" && search && event.target === search) {
    search.value = "";
    filter();
  } else if (event.target === search && event.key === "ArrowDown" && shown().length) {
    event.preventDefault();
    shown()[0].focus();
  } else if (card && event.target === card && KEYS.includes(event.key)) {
    const next = neighbour(card, event.key);
    if (next) {
      event.preventDefault();
      next.focus();
    }
  } else if (card && event.target === card && event.key === "Enter") {
    card.classList.toggle("open");
  }
});
if (search) search.addEventListener("input", filter);
