// Names for the fields of Datasette's forms that have none, for those who hear them.
const NAMES = {
  '[name^="_filter_column"]': "column",
  '[name^="_filter_op"]': "how to compare",
  '[name^="_filter_value"]': "value",
  '[name="_sort"]': "sort by",
  '[name="sql"], .CodeMirror textarea': "SQL query",
};
addEventListener("load", () => {
  for (const [fields, name] of Object.entries(NAMES))
    for (const each of document.querySelectorAll(fields)) if (!each.labels?.length) each.setAttribute("aria-label", name);
});
