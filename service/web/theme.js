// Light, dark, or what the system says. Loaded before the page is drawn, so that it never flashes,
// and shared by all pages; the rest of the work is done by color-scheme and light-dark() in CSS.
"use strict";
(() => {
  const STORE = "bar-serve.theme";
  const THEMES = ["system", "light", "dark"];
  const root = document.documentElement;

  const read = () => {
    try {
      const stored = localStorage.getItem(STORE) ?? "system";
      return THEMES.includes(stored) ? stored : "system";
    } catch {
      return "system"; // storage is blocked: the choice lasts as long as the page
    }
  };
  /** @param {string} theme */
  const apply = (theme) => {
    root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (!button) return;
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    button.setAttribute("aria-label", `Theme: ${theme}. Switch to ${next}`);
    button.title = `Theme: ${theme}`;
    button.querySelector("use")?.setAttribute("href", `#i-${theme}`);
  };
  const advance = () => {
    const theme = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
    try {
      localStorage.setItem(STORE, theme);
    } catch {
      /* as above */
    }
    apply(theme);
  };

  apply(read());
  document.addEventListener("DOMContentLoaded", () => {
    apply(read());
    document.getElementById("theme")?.addEventListener("click", advance);
  });
})();
