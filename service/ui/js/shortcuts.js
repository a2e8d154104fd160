/** Keys that work anywhere on the page, except while one writes. */

/**
 * @param {Object} actions key → function; "Escape" also works in fields
 */
export function wireShortcuts(actions) {
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const writing = event.target.closest?.("input:not([type=radio]):not([type=file]), textarea, select");
    const action = actions[event.key];
    if (!action || (writing && event.key !== "Escape")) return;
    event.preventDefault();
    action();
  });
}
