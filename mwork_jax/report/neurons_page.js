// Shows the neurons that the filters and the search ask for. Text from results is compared, never made into markup.
(() => {
  "use strict";
  const form = document.querySelector("form");
  const fields = ["language", "group", "layer", "q"].map((name) => form.elements.namedItem(name));
  const count = document.querySelector("#count");
  const nothing = document.querySelector("#nothing");
  const cards = [...document.querySelectorAll("article")];
  const texts = new Map();

  function textOf(card) {
    if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
    return texts.get(card);
  }

  function fits(card, language, group, layer, query) {
    const { languages, groups, name } = card.dataset;
    if (language && !languages.split(" ").includes(language)) return false;
    if (group && !groups.split(" ").includes(group)) return false;
    if (layer && name.split("/")[0] !== layer) return false;
    return !query || name === query || (!/^\d+\/\d*$/.test(query) && textOf(card).includes(query));
  }

  function show() {
    const [language, group, layer, q] = fields.map((field) => field.value);
    const query = q.trim().toLowerCase();
    let shown = 0;
    for (const card of cards) {
      card.hidden = !fits(card, language, group, layer, query);
      shown += !card.hidden;
    }
    count.textContent = `${shown} of ${cards.length} neurons`;
    nothing.hidden = shown > 0;
  }

  // What is not on the page, such as a group that was not read, is shown as such: nothing fits it.
  function choose(field, value) {
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) {
      field.add(new Option(value, value));
    }
    field.value = value;
  }

  function fromAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const field of fields) choose(field, wanted.get(field.name) ?? "");
    show();
  }

  function toAddress() {
    const chosen = new URLSearchParams();
    for (const field of fields) if (field.value) chosen.set(field.name, field.value);
    history.replaceState(null, "", `#${chosen}`);
    show();
  }

  form.addEventListener("input", toAddress);
  form.addEventListener("reset", () => setTimeout(toAddress));
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", fromAddress);
  form.hidden = false;
  fromAddress();
})();
