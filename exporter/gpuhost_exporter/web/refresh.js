"use strict";
(() => {
  const stale = document.getElementById("stale");
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(4000) });
      if (!answer.ok) throw new Error(answer.statusText);
      const page = await answer.text();
      // Only these: parsing the new page's style would break this page's Content-Security-Policy.
      const part = (tag) => page.slice(page.indexOf(`<${tag}>`), page.indexOf(`</${tag}>`) + tag.length + 3);
      const next = new DOMParser().parseFromString(part("title") + part("main"), "text/html");
      const main = document.querySelector("main");
      const offsets = [...main.querySelectorAll(".scroll")].map((part) => part.scrollLeft);
      const fresh = document.adoptNode(next.querySelector("main"));
      main.replaceWith(fresh);
      fresh.querySelectorAll(".scroll").forEach((part, place) => { part.scrollLeft = offsets[place] || 0; });
      document.title = next.title;
      stale.hidden = true;
    } catch {
      stale.hidden = false;
    }
  };
  setInterval(refresh, 5000);
  document.addEventListener("visibilitychange", refresh);
})();
