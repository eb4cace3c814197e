// The address of the page, which restores what it shows: `#image=osprey&words=bird,tree`.

/** What the address asks for, by name. */
export const readLink = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

/** Write what the page shows, by name, without what is empty. */
export function writeLink(state) {
  const pairs = Object.entries(state).filter(([, value]) => value);
  const text = pairs.map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%2C", ",")}`).join("&");
  history.replaceState(null, "", text ? `#${text}` : location.pathname);
}
