// Says what is wrong with custom resources of KEDA, the Gateway API and the Prometheus operator, by their published models.
//
// `node validate_crds.mjs FOLDER`, where FOLDER holds node_modules: a JSON list of documents on stdin, a JSON list
// of [index, field, message] on stdout. The models' validators know types, patterns and what must be there, but let
// unknown fields pass; TypeScript's check of a literal against the models' interfaces finds those.
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const PACKAGES = {
  "keda.sh": "@kubernetes-models/keda",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};

const prefix = resolve(process.argv[2]);
const modules = join(prefix, "node_modules");
const documents = JSON.parse(readFileSync(0, "utf8"));
const { default: ts } = await import(pathToFileURL(join(modules, "typescript/lib/typescript.js")));

/** A kind's model, and the path of its module without the ending; nothing where no package has this kind. */
async function findModel({ apiVersion, kind }) {
  const name = PACKAGES[apiVersion.split("/")[0]];
  const path = name && join(modules, name, apiVersion, kind);
  if (!path || !existsSync(`${path}.js`)) return undefined;
  const model = (await import(pathToFileURL(`${path}.js`)))[kind];
  // Parts of kinds have modules too, but no kind.
  return model?.kind === kind ? { model, path } : undefined;
}

function faultsOfValues(document, model) {
  try {
    new model(document).validate();
    return [];
  } catch (error) {
    if (!error.errors) throw error;
    return error.errors.map(({ instancePath, message }) => [instancePath, message]);
  }
}

/** Problems of one literal per document, in one program: reading the interfaces is what takes the time. */
function faultsOfFields(placed) {
  const file = join(prefix, "documents.ts");
  const lines = placed.flatMap(({ document, path }, n) => [
    `import type { I${document.kind} as Model${n} } from ${JSON.stringify(`${path}.js`)};`,
    `export const document${n}: Model${n} = ${JSON.stringify(document)};`,
  ]);
  const options = {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    module: ts.ModuleKind.ESNext,
    moduleResolution: ts.ModuleResolutionKind.Bundler,
    target: ts.ScriptTarget.ES2022,
    types: [],
  };
  const host = ts.createCompilerHost(options);
  const { getSourceFile } = host;
  host.getSourceFile = (name, ...others) =>
    resolve(name) === file
      ? ts.createSourceFile(name, lines.join("\n"), options.target, true)
      : getSourceFile.call(host, name, ...others);
  const program = ts.createProgram([file], options, host);
  const source = program.getSourceFile(file);
  return program.getSemanticDiagnostics(source).map(({ start, messageText }) => {
    // Each document has two lines.
    const n = source.getLineAndCharacterOfPosition(start).line >> 1;
    return [placed[n].index, "", ts.flattenDiagnosticMessageText(messageText, " ")];
  });
}

const faults = [];
const placed = [];
for (const [index, document] of documents.entries()) {
  const found = await findModel(document);
  if (found === undefined) {
    faults.push([index, "", `no model of ${document.apiVersion} ${document.kind}`]);
    continue;
  }
  placed.push({ index, document, path: found.path });
  for (const fault of faultsOfValues(document, found.model)) faults.push([index, ...fault]);
}
faults.push(...faultsOfFields(placed));
process.stdout.write(JSON.stringify(faults));
