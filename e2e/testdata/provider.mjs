// An OpenID provider on https://localhost:PORT, by oidc-provider: gives access
// tokens for AUDIENCE to the clients in CLIENTS, each under its own name, whose secret
// is "secret", and to whoever says who they are and sits before the client "page", at
// any port of http://127.0.0.1/. It has a new key with each start. With ISSUER, that is
// the issuer of its tokens, and its configuration is under PATH_OF_CONFIGURATION, which begins with a
// slash. BAD_KEYS, JSON, are published before its own key. With KEYS_ONCE, it answers one request for its keys, and no later one.
import { readFileSync } from 'node:fs'
import { generateKeyPairSync, randomUUID } from 'node:crypto'
import { createServer } from 'node:https'

const env = process.env
const { default: Provider } = await import(`${env.NODE_MODULES}/oidc-provider/lib/index.js`)
const key = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' })

const server = createServer({ cert: readFileSync(env.CERT), key: readFileSync(env.KEY) })
server.listen(Number(env.PORT), '127.0.0.1', () => {
  const base = `https://localhost:${server.address().port}`
  const issuer = env.ISSUER || base
  const kid = randomUUID()
  const { d: _, ...published } = { ...key, kid, use: 'sig', alg: 'ES256' }
  const provider = new Provider(issuer, {
    jwks: { keys: [{ ...key, kid, use: 'sig', alg: 'ES256' }] },
    clients: [
      ...env.CLIENTS.split(',').map((id) => ({
        client_id: id, client_secret: 'secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [],
        id_token_signed_response_alg: 'ES256',
      })),
      {
        client_id: 'page', token_endpoint_auth_method: 'none', application_type: 'native', redirect_uris: ['http://127.0.0.1/'],
        grant_types: ['authorization_code'], response_types: ['code'], id_token_signed_response_alg: 'ES256',
      },
    ],
    clientBasedCORS: () => true,
    cookies: { keys: [randomUUID()] },
    ttl: { ClientCredentials: 600, AccessToken: 600, Grant: 600, IdToken: 600, Interaction: 600, Session: 600 },
    features: {
      devInteractions: { enabled: true }, // a form for the name, and one for consent
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => env.AUDIENCE,
        useGrantedResource: () => true,
        getResourceServerInfo: (_ctx, audience) => ({
          scope: '', audience, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } },
        }),
      },
    },
  })
  const handle = provider.callback()
  let keysSent = 0
  const configuration = '/.well-known/openid-configuration'
  server.on('request', (req, res) => {
    const { pathname } = new URL(req.url, base)
    if (env.KEYS_ONCE && pathname === '/jwks' && keysSent++ > 0) return
    if (env.BAD_KEYS && pathname === '/jwks') {
      res.setHeader('Content-Type', 'application/json')
      return res.end(JSON.stringify({ keys: [...JSON.parse(env.BAD_KEYS), published] }))
    }
    if (env.ISSUER && pathname === configuration) req.url = '/nothing'
    if (env.ISSUER && pathname === env.PATH_OF_CONFIGURATION + configuration) req.url = configuration
    handle(req, res)
  })
  console.log(`issuer ${base}`)
})
