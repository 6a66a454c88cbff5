// Signs in at an MCP server with an official TypeScript SDK, as it is: calls a tool, steps up for one that needs more, refreshes, and is
// refused once its user's access has been revoked. The settings are JSON in the first argument; the test plays the browser.
import { createInterface } from 'node:readline';

const settings = JSON.parse(process.argv[2]);
const sdk = settings.sdk === '1'
  ? { ...(await import('@modelcontextprotocol/sdk/client/index.js')), ...(await import('@modelcontextprotocol/sdk/client/streamableHttp.js')), ...(await import('@modelcontextprotocol/sdk/client/auth.js')) }
  : await import('@modelcontextprotocol/client');

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
// ask sends a line to the test and waits for its answer.
async function ask(what) {
  console.log(JSON.stringify(what));
  return JSON.parse((await answers.next()).value);
}
function check(ok, why) {
  if (!ok) throw new Error(why);
}

// Provider keeps what a program would keep in its profile directory.
class Provider {
  saved = {};
  asked = [];
  get redirectUrl() { return settings.redirect; }
  get clientMetadata() {
    return { client_name: 'Agent', redirect_uris: [settings.redirect], grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'],
      token_endpoint_auth_method: settings.client?.client_secret ? 'client_secret_post' : 'none' };
  }
  clientMetadataUrl = settings.document;
  state() { return 'state-' + this.asked.length; }
  clientInformation() { return settings.client ?? this.saved.client; }
  saveClientInformation(c) { this.saved.client = c; }
  tokens() { return this.saved.tokens; }
  saveTokens(t) { this.saved.tokens = t; }
  saveCodeVerifier(v) { this.saved.verifier = v; }
  codeVerifier() { return this.saved.verifier; }
  async redirectToAuthorization(url) {
    this.asked.push(url.searchParams.get('scope') ?? '');
    const back = new URL((await ask({ visit: url.href })).location);
    check(back.searchParams.get('state') === url.searchParams.get('state'), 'the state came back changed');
    this.answer = back.searchParams;
  }
  invalidateCredentials(what) {
    if (what === 'tokens' || what === 'all') delete this.saved.tokens;
    if (what === 'client' || what === 'all') delete this.saved.client;
  }
}

const provider = new Provider();
let client, transport, challenge;
// fetchAndNote remembers what the last 403 asks for.
async function fetchAndNote(url, init) {
  const r = await fetch(url, init);
  if (r.status === 403) challenge = sdk.extractWWWAuthenticateParams(r);
  return r;
}
// signedIn runs f again after the SDK has sent the user to sign in, as its documentation tells programs to.
async function signedIn(f) {
  for (let tries = 0; ; tries++) {
    try {
      return await f();
    } catch (err) {
      if (tries > 0) throw err;
      // Where 1.x has a refresh token it refreshes instead of asking for more: a program that steps up takes it away first.
      if (settings.sdk === '1' && err?.code === 403 && challenge?.scope) {
        delete provider.saved.tokens.refresh_token;
        await sdk.auth(provider, { serverUrl: settings.url, ...challenge });
      }
      if (!provider.answer) throw err;
      const answer = provider.answer;
      provider.answer = undefined;
      if (settings.sdk === '1') await transport.finishAuth(answer.get('code'));
      else await transport.finishAuth(answer);
    }
  }
}
async function connect() {
  client = new sdk.Client({ name: 'agent', version: '1' });
  transport = new sdk.StreamableHTTPClientTransport(new URL(settings.url), { authProvider: provider, fetch: fetchAndNote });
  await client.connect(transport);
}
async function notes(tool, args = {}) {
  const r = await signedIn(() => client.callTool({ name: tool, arguments: args }));
  check(!r.isError, JSON.stringify(r));
  return JSON.stringify(r.structuredContent.notes);
}

await signedIn(connect);
check(provider.asked.join() === 'notes:read', `asked first for ${provider.asked}`);
check(await notes('list_notes') === '[]', 'a new user has notes');
check(await notes('add_note', { text: 'milk' }) === '["milk"]', 'the note is not there');
check(provider.asked.length === 2, `asked ${provider.asked.length} times: ${provider.asked}`);
check(provider.asked[1].split(' ').sort().join() === 'notes:read,notes:write', `stepped up to ${provider.asked[1]}`);

// An access token that the server no longer takes is refreshed without the user.
const before = provider.saved.tokens;
check(before.refresh_token, 'no refresh token');
provider.saved.tokens = { ...before, access_token: before.access_token.slice(0, -6) + 'AAAAAA' };
check(await notes('list_notes') === '["milk"]', 'after the refresh');
check(provider.saved.tokens.access_token !== before.access_token, 'nothing was refreshed');
check(provider.asked.length === 2, 'the user was asked for a refresh');

// After a revocation neither token is good: the user is asked again.
await ask({ revoke: true });
provider.redirectToAuthorization = () => { throw new Error('the user is asked'); };
let refused = '';
try {
  await client.callTool({ name: 'list_notes', arguments: {} });
} catch (err) {
  refused = String(err?.message ?? err);
}
check(refused.includes('the user is asked'), `after the revocation: ${refused || 'it goes on'}`);
await ask({ done: { client: provider.clientInformation().client_id, scope: before.scope } });
process.exit(0);
