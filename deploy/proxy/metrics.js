// What nginx knows of itself, in Prometheus' text format.

const responses = ngx.shared.responses;
const CLASSES = ["2xx", "4xx", "429", "5xx"];
// What nginx answers by itself on the port of gRPC, by the code in `grpc-status`.
const HTTP_OF_GRPC = {4: 504, 8: 429, 14: 503, 16: 401};

function classOf(status) {
  if (status === 429) return "429";
  return status >= 500 ? "5xx" : status >= 400 ? "4xx" : "2xx";
}

// Count a response, once: the access log asks for it at the end of each request. Returns who answered: the server, or the proxy.
function count(request) {
  const variables = request.variables;
  // Of several tries the last one counts. Without a head, the server did not answer.
  const last = (variables.upstream_header_time || "-").split(/[ ,:]+/).pop();
  const by = last === "-" ? "proxy" : "server";
  const grpcStatus = by === "proxy" && variables.sent_http_grpc_status;
  const status = HTTP_OF_GRPC[grpcStatus] || Number(variables.status);
  responses.incr(`${variables.server_name},${classOf(status)},${by}`, 1, 0);
  return by;
}

function write(request) {
  const variables = request.variables;
  const lines = [
    "# HELP tipserve_proxy_connections Open connections by what they do; active ones are all of them.",
    "# TYPE tipserve_proxy_connections gauge",
  ];
  ["active", "reading", "writing", "waiting"].forEach((state) => {
    lines.push(`tipserve_proxy_connections{state="${state}"} ${variables["connections_" + state]}`);
  });
  lines.push(
    "# HELP tipserve_proxy_max_connections Most connections, those to the server included.",
    "# TYPE tipserve_proxy_max_connections gauge",
    `tipserve_proxy_max_connections ${variables.max_connections}`,
    "# HELP tipserve_proxy_responses_total Responses by HTTP status, and by who gave them.",
    "# TYPE tipserve_proxy_responses_total counter",
  );
  ["rest", "grpc"].forEach((protocol) => CLASSES.forEach((code) => ["server", "proxy"].forEach((by) => {
    const counted = responses.get(`${protocol},${code},${by}`) || 0;
    lines.push(`tipserve_proxy_responses_total{protocol="${protocol}",code="${code}",by="${by}"} ${counted}`);
  })));
  request.headersOut["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8";
  request.return(200, lines.join("\n") + "\n");
}

export default { count, write };
