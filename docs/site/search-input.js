// The theme's search listens to `keyup` alone: a word that is pasted with the mouse, dropped, dictated or put there
// by an input method is never looked for. A word that is there before the search has begun hides that: it is read
// once when the index is ready. So whether such a word was found depended on which of the two came first.
"use strict";
document.addEventListener("input", event => {
  if (event.target instanceof Element && event.target.matches(".md-search__input"))
    event.target.dispatchEvent(new Event("keyup"));
});
