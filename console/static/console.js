// Optional. Every page works without it: it only adds copy buttons, a live filter for lists that are on the page already,
// and local times. It is served from the console's own path, so that script-src 'self' is enough.
(() => {
  "use strict";
  const say = document.body.dataset;
  const live = document.getElementById("live");
  for (const b of document.querySelectorAll("button[data-copy]")) {
    const from = document.getElementById(b.dataset.copy);
    if (!from || !navigator.clipboard) continue;
    b.hidden = false;
    const label = b.textContent;
    b.addEventListener("click", async () => {
      await navigator.clipboard.writeText(from.textContent.trim());
      b.textContent = say.copied;
      live.textContent = say.said;
      setTimeout(() => { b.textContent = label; }, 2000);
    });
  }
  for (const box of document.querySelectorAll("input[data-filter]")) {
    const list = document.getElementById(box.dataset.filter);
    if (!list) continue;
    box.closest("[hidden]")?.removeAttribute("hidden");
    box.addEventListener("input", () => {
      const want = box.value.trim().toLowerCase();
      let n = 0;
      for (const row of list.querySelectorAll("[data-text]")) {
        const hit = row.dataset.text.includes(want);
        row.hidden = !hit;
        n += hit;
      }
      live.textContent = n + " " + say.shown;
    });
  }
  for (const t of document.querySelectorAll("time[datetime]")) {
    const d = new Date(t.dateTime);
    if (!isNaN(d)) t.title = d.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
  }
})();
