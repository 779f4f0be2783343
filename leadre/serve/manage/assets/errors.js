// Loaded before all other scripts: shows their errors on the page, and replaces a language that `Intl` rejects.
"use strict";
(() => {
  const MAX_ERRORS = 5;
  const errors = new Set();

  function show() {
    const line = document.getElementById("script-error");
    if (!line || !errors.size) return; // the document is still being read: shown once it is complete
    line.textContent = `A script of this page failed, so parts of it may be missing or old: ${[...errors].join("; ")}`;
    line.hidden = false;
  }

  function report(text) {
    if (errors.size < MAX_ERRORS) errors.add(text);
    show();
  }

  addEventListener("error", ({ message, target }) => {
    report(message ?? `${target.src ?? target.href} did not load`); // a script or a stylesheet has no message
  }, true);
  addEventListener("unhandledrejection", ({ reason }) => report(String(reason)));
  addEventListener("DOMContentLoaded", show);

  // In a locale such as C or POSIX a browser names a language that is no BCP 47 tag: "en-US@posix", "c".
  try {
    new Intl.NumberFormat(navigator.language);
  } catch {
    Object.defineProperty(navigator, "language", { value: "en" });
  }
})();
