#!/bin/sh
# Fills nginx.conf from PROXY_... variables, and becomes nginx. `start.sh reload` fills it again and tells a running nginx so.
#
#   PROXY_REST, PROXY_GRPC, PROXY_METRICS   where it listens: 8000, 8001, 8003; a port, or an address with a port
#   PROXY_REST_SERVER, PROXY_GRPC_SERVER    the server, whose `trusted_proxies` names this proxy; several are separated by spaces
#   PROXY_TLS_CERT                          a certificate, with its key tls.key beside it: both protocols are encrypted then
#   PROXY_TLS_CLIENT_CA                     callers must present a certificate of this authority
#   PROXY_TRUSTED                           networks of balancers in front, such as an Ingress, separated by spaces
#   PROXY_REQUESTS_PER_ADDRESS              requests of one caller at once, over both protocols; an IPv6 caller is a /64
#   PROXY_REQUESTS_PER_10S                  requests of one caller in ten seconds, over both protocols
#   PROXY_CONNECTIONS                       most connections, those to the server included
#   PROXY_TIMEOUT_S                         silence that ends a request, longer than TIPSERVE_REQUEST_TIMEOUT_S
#   PROXY_FOLDER                            where the filled file lies: /tmp/proxy
set -eu

here=$(cd "$(dirname "$0")" && pwd)
export PROXY_FOLDER="${PROXY_FOLDER:-/tmp/proxy}" PROXY_HERE="$here"
export PROXY_TIMEOUT_S="${PROXY_TIMEOUT_S:-90}" PROXY_REQUESTS_PER_ADDRESS="${PROXY_REQUESTS_PER_ADDRESS:-128}"
# nginx counts a rate by the second, so ten seconds' requests are a rate and a burst.
export PROXY_RATE=$((${PROXY_REQUESTS_PER_10S:-10000} / 10)) PROXY_BURST="${PROXY_REQUESTS_PER_10S:-10000}"

export PROXY_CONNECTIONS="${PROXY_CONNECTIONS:-16384}"

# Lines of nginx for each word of a list.
lines() {
  text=$1
  shift
  for word in "$@"; do printf "$text\n" "$word"; done
}

# `listen` for a port of every address, IPv6 too where the machine has it; or for what is given.
listen() {
  given=$1
  shift
  case $given in
    *:*) echo "listen $given $*;" ;;
    *) if [ -s /proc/net/if_inet6 ]; then echo "listen [::]:$given ipv6only=off $*;"; else echo "listen $given $*;"; fi ;;
  esac
}

tls=""
PROXY_TLS=""
if [ -n "${PROXY_TLS_CERT:-}" ]; then
  tls=ssl
  # Named by a variable, the files are read at each handshake: a renewed certificate needs no reload.
  PROXY_TLS="ssl_certificate \$tls_folder/$(basename "$PROXY_TLS_CERT"); ssl_certificate_key \$tls_folder/tls.key;"
  if [ -n "${PROXY_TLS_CLIENT_CA:-}" ]; then
    PROXY_TLS="$PROXY_TLS ssl_client_certificate $PROXY_TLS_CLIENT_CA; ssl_verify_client on;"
  fi
fi
export PROXY_TLS
export PROXY_TLS_FOLDER="$(dirname "${PROXY_TLS_CERT:-/none}")"
# Answers that are not read take little of the kernel's memory, which counts as the container's: 200 of them took 777 MiB without `sndbuf`.
PROXY_LISTEN_REST=$(listen "${PROXY_REST:-8000}" reuseport sndbuf=128k $tls)
PROXY_LISTEN_GRPC=$(listen "${PROXY_GRPC:-8001}" reuseport sndbuf=128k $tls)
PROXY_LISTEN_METRICS=$(listen "${PROXY_METRICS:-8003}" reuseport)
PROXY_REST_SERVERS=$(lines "server %s max_fails=1 fail_timeout=2s;" ${PROXY_REST_SERVER:-127.0.0.1:8010})
PROXY_GRPC_SERVERS=$(lines "server %s max_fails=1 fail_timeout=2s;" ${PROXY_GRPC_SERVER:-127.0.0.1:8011})
PROXY_REAL_IP=$(lines "set_real_ip_from %s;" ${PROXY_TRUSTED:-})
export PROXY_LISTEN_REST PROXY_LISTEN_GRPC PROXY_LISTEN_METRICS PROXY_REST_SERVERS PROXY_GRPC_SERVERS PROXY_REAL_IP

# Where the package of the system puts njs; the image has it in nginx's own folder.
for PROXY_MODULES in ${PROXY_MODULES:-} "$(dirname "$(command -v nginx)")/../nginx/usr/lib/nginx/modules" /usr/lib/nginx/modules /etc/nginx/modules; do
  [ -f "$PROXY_MODULES/ngx_http_js_module.so" ] && break
done
export PROXY_MODULES

mkdir -p "$PROXY_FOLDER"
# Only these names: nginx has variables of its own.
names=$(env | sed -n 's/^\(PROXY_[A-Z0-9_]*\)=.*/${\1}/p')
envsubst "$names" <"$here/nginx.conf" >"$PROXY_FOLDER/nginx.conf"

if [ "${1:-}" = reload ]; then
  exec nginx -c "$PROXY_FOLDER/nginx.conf" -s reload
fi
exec nginx -c "$PROXY_FOLDER/nginx.conf" "$@"
