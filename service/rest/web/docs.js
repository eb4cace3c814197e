// Swagger UI over the server's own OpenAPI document.

const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.classList.toggle("dark-mode", isDark);

// Swagger UI fills a form with samples (`string`, 0, the first choice), and sends empty fields, too. Here a field is
// empty at first, and is then left out, so that the server's default applies.
const emptyForms = {
  afterLoad({ fn }) {
    const { getSampleSchema } = fn;
    this.fn.getSampleSchema = (schema, media, ...rest) => {
      const isField = media === false; // other samples have a media type
      if (!isField) return getSampleSchema(schema, media, ...rest);
      return fn.getSchemaObjectType(schema) === "array" ? [] : "";
    };
  },
  wrapComponents: { ParameterIncludeEmpty: () => () => null },
};

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#document",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
  plugins: [() => emptyForms],
});
