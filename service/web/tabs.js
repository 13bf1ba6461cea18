/**
 * Tabs after the ARIA pattern: one stop of the Tab key, arrows move and choose at once.
 */

/**
 * @param {HTMLElement} tablist
 * @param {(tab: HTMLElement) => void} onSelect called when another tab is chosen
 * @returns {{select: (id: string) => void, selected: () => string}} ids of tabs
 */
export function connectTabs(tablist, onSelect) {
  const tabs = /** @type {HTMLElement[]} */ ([...tablist.querySelectorAll('[role="tab"]')]);
  const selected = () =>
    tabs.find((tab) => tab.getAttribute("aria-selected") === "true") ?? tabs[0];

  /** @param {HTMLElement} chosen */
  function select(chosen) {
    if (chosen === selected()) return;
    for (const tab of tabs) mark(tab, tab === chosen);
    onSelect(chosen);
  }

  /** @param {KeyboardEvent} event */
  function onKey(event) {
    const at = tabs.indexOf(selected());
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const tab = tabs[(to + tabs.length) % tabs.length];
    select(tab);
    tab.focus();
  }

  for (const tab of tabs) {
    mark(tab, tab === selected());
    tab.addEventListener("click", () => select(tab));
  }
  tablist.addEventListener("keydown", onKey);
  return {
    select: (id) => select(tabs.find((tab) => tab.id === id) ?? tabs[0]),
    selected: () => selected().id,
  };
}

/**
 * @param {HTMLElement} tab
 * @param {boolean} isSelected
 */
function mark(tab, isSelected) {
  tab.setAttribute("aria-selected", String(isSelected));
  tab.tabIndex = isSelected ? 0 : -1;
}
