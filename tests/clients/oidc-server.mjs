// A certified OpenID provider (npm `oidc-provider`) as the token server of Index Exchange.
//
// usage: AUDIT_EXPORTER_NODE_MODULES=FOLDER/node_modules node oidc-server.mjs CLIENT_ID CLIENT_SECRET
//
// Serves /auth/realms/eventlog/protocol/openid-connect/token on a free port of loopback and prints
// `listening on http://127.0.0.1:PORT`, then one line `token STATUS` for each token request.
import { createRequire } from 'node:module';
import { createServer } from 'node:http';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const modules = createRequire(path.join(path.resolve(process.env.AUDIT_EXPORTER_NODE_MODULES), 'here.js'));
const { Provider } = await import(pathToFileURL(modules.resolve('oidc-provider')));

const [clientId, clientSecret] = process.argv.slice(2);
const realm = '/auth/realms/eventlog';
const server = createServer();

server.listen(0, '127.0.0.1', () => {
  const origin = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(origin + realm, {
    clients: [
      {
        client_id: clientId,
        client_secret: clientSecret,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
      },
    ],
    features: { clientCredentials: { enabled: true }, devInteractions: { enabled: false } },
    routes: { token: '/protocol/openid-connect/token' },
    ttl: { ClientCredentials: 3600 },
  });
  const serve = provider.callback();
  server.on('request', (request, response) => {
    response.on('finish', () => console.log(`token ${response.statusCode}`));
    if (!request.url.startsWith(`${realm}/`)) {
      response.writeHead(404).end();
      return;
    }
    // as a web server in front would: the provider is mounted at the realm
    request.originalUrl = request.url;
    request.url = request.url.slice(realm.length);
    serve(request, response);
  });
  console.log(`listening on ${origin}`);
});
