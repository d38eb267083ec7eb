package doctor

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cats.example/shared/access"
	"cats.example/signer/internal/auth"
	"cats.example/signer/internal/identity"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
	"cats.example/signer/internal/storagetest"
)

const (
	clientID  = "11111111-1111-4111-8111-111111111111"
	authority = "https://login.example"
	issuer    = "https://issuer.example/issuer"
	audience  = "api://AzureADTokenExchange"
)

// environment is a signer's environment in which all checks pass: settings, Entra ID, an issuer and a storage account.
type environment struct {
	Options
	server *storagetest.Server
	fault  func(check string, w http.ResponseWriter) bool // answers in place of the environment; true when it has
}

func newEnvironment(t *testing.T) *environment {
	t.Helper()
	transport := storage.NewTransport()
	e := &environment{server: storagetest.New(t, transport)}
	e.server.SetEarly(func(w http.ResponseWriter, r *http.Request) bool {
		check := checkOf(r)
		if e.fault != nil && e.fault(check, w) {
			return true
		}
		switch check {
		case "exchange":
			w.Header().Set("Content-Type", "application/json")
			tenant := authority + "/tenant.example"
			_ = json.NewEncoder(w).Encode(map[string]any{
				"issuer": tenant + "/v2.0", "authorization_endpoint": tenant + "/oauth2/v2.0/authorize", "token_endpoint": tenant + "/oauth2/v2.0/token",
				"token_type": "Bearer", "expires_in": 3600, "access_token": "eyJsecret",
			})
		case "callers": // the configuration and the keys in one; the key is from RFC 7517 appendix A.1
			fmt.Fprintf(w, `{"issuer":"%[1]s","jwks_uri":"%[1]s/keys","keys":[{"kty":"EC","crv":"P-256",
				"x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`, issuer)
		case "link", "link base":
			if r.Header.Get("Authorization") != "" {
				t.Error("a signed URL is read with a token")
			}
			r.URL.Path = strings.TrimPrefix(r.URL.Path, "/base")
			return false
		default:
			return false
		}
		return true
	})
	file := filepath.Join(t.TempDir(), "token")
	e.Options = Options{
		Identity: identity.Settings{
			Credential: identity.WorkloadIdentity, ClientID: clientID, TenantID: "tenant.example", TokenFile: file,
			AuthorityHost: authority + "/", DisableInstanceDiscovery: true,
		},
		Storage:   storage.Settings{AccountURL: storagetest.AccountURL, Container: "cats", BlobName: "cat"},
		Signing:   signing.Settings{LinkBaseURL: "https://cdn.example/base", LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour},
		Transport: transport,
	}
	e.writeToken(t, token(fmt.Sprintf(`{"iss":"https://cluster.example","sub":"system:serviceaccount:cats-api:cats-api-sa","aud":[%q],"exp":%d}`, audience, time.Now().Add(time.Hour).Unix())))
	return e
}

// checkOf returns the check that makes the request.
func checkOf(r *http.Request) string {
	q := r.URL.Query()
	switch {
	case strings.Contains(r.URL.Path, "/v2.0/"):
		return "exchange"
	case r.Host == "issuer.example":
		return "callers"
	case q.Get("comp") == "userdelegationkey":
		return "key"
	case r.Header.Get("X-Ms-Copy-Source") != "":
		return "copy"
	case q.Get("sig") != "" && strings.HasPrefix(r.URL.Path, "/base/"):
		return "link base"
	case q.Get("sig") != "":
		return "link"
	case q.Get("comp") == "" && !strings.Contains(r.URL.Path, testUserPrefix):
		return "clock"
	}
	return strings.ToLower(r.Method) // put or delete
}

// token returns a token with claims and an invalid signature.
func token(claims string) string {
	return "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2VjcmV0"
}

func (e *environment) writeToken(t *testing.T, token string) {
	t.Helper()
	if err := os.WriteFile(e.Identity.TokenFile, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
}

// rejecting makes storage or the issuer reject the requests of a check.
func rejecting(check string, status int, code string) func(*testing.T, *environment) {
	return func(_ *testing.T, e *environment) {
		e.fault = func(c string, w http.ResponseWriter) bool {
			if c == check {
				storagetest.Reject(w, status, code)
			}
			return c == check
		}
	}
}

// examine runs the doctor. It compares the marks of the checks, looks for each text in the report, and for secrets.
func examine(ctx context.Context, t *testing.T, e *environment, marks string, texts ...string) {
	t.Helper()
	var out strings.Builder
	healthy := Run(ctx, e.Options, &out)
	var checks []string
	for _, m := range regexp.MustCompile(`(?m)^(ok|warn|fail|skip) +(\w+(?: \w+)*)  `).FindAllStringSubmatch(out.String(), -1) {
		checks = append(checks, m[1]+" "+m[2])
	}
	if got := strings.Join(checks, ", "); got != marks {
		t.Errorf("got  %s\nwant %s\n%s", got, marks, &out)
	}
	if want := !strings.Contains(marks, "fail ") && !strings.Contains(marks, "skip "); healthy != want {
		t.Errorf("healthy is %v\n%s", healthy, &out)
	}
	for _, text := range texts {
		if !strings.Contains(out.String(), text) {
			t.Errorf("%q is not in\n%s", text, &out)
		}
	}
	for _, secret := range []string{"eyJ", "sig=", "c2VjcmV0"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q is in\n%s", secret, &out)
		}
	}
}

const (
	begin   = "ok settings, ok token file, ok exchange, "
	healthy = begin + "ok key, ok put, ok link, ok link base, ok delete, ok clock"
)

func TestReportTellsWhatWorksAndWhatToDo(t *testing.T) {
	const delegator, contributor = "Storage Blob Delegator", "Storage Blob Data Contributor"
	but := func(check, mark string) string { return strings.Replace(healthy, "ok "+check, mark+" "+check, 1) }
	noKey, noPut := begin+"fail key, ok put, skip link, ok delete, ok clock", begin+"ok key, fail put, skip link, ok clock"
	withCopy := func(mark string) string { return strings.Replace(healthy, "ok delete", mark+" copy, ok delete", 1) }
	directUploads := func(check string, status int, code string) func(*testing.T, *environment) {
		return func(t *testing.T, e *environment) { e.DirectUploads = true; rejecting(check, status, code)(t, e) }
	}
	callers := func(issuer string) func(*testing.T, *environment) {
		return func(_ *testing.T, e *environment) {
			e.Callers = auth.Settings{Policy: access.Policy{Issuer: issuer}, Audience: "the-api", UserClaim: "oid"}
		}
	}
	clock := func(ahead time.Duration) func(*testing.T, *environment) {
		return func(_ *testing.T, e *environment) { e.server.SetAhead(ahead) }
	}
	for name, c := range map[string]struct {
		change func(*testing.T, *environment)
		marks  string
		texts  []string
	}{
		"healthy":      {nil, healthy, []string{"system:serviceaccount:cats-api:cats-api-sa", "https://cluster.example", "all works"}},
		"no link base": {func(_ *testing.T, e *environment) { e.Signing.LinkBaseURL = "" }, strings.Replace(healthy, ", ok link base", "", 1), nil},

		"key: no role": {rejecting("key", 403, "AuthorizationPermissionMismatch"), noKey, []string{
			"fix: give the identity the role " + delegator + " on the storage account; a new role assignment takes effect after minutes",
			`az role assignment create --assignee ` + clientID + ` --role "` + delegator + `" --scope "$(az storage account show --name acct --query id --output tsv)"`,
		}},
		"key: network rules": {rejecting("key", 403, "AuthorizationFailure"), noKey, []string{"network rules"}},
		"key: token":         {rejecting("key", 401, "InvalidAuthenticationInfo"), noKey, []string{"AZURE_TENANT_ID"}},
		"put: no role": {rejecting("put", 403, "AuthorizationPermissionMismatch"), noPut, []string{
			"fix: give the identity the role " + contributor + " on the container", `--role "` + contributor + `"`, `/blobServices/default/containers/cats"`,
		}},
		"put: network rules":   {rejecting("put", 403, "AuthorizationFailure"), noPut, []string{"network rules"}},
		"put: no container":    {rejecting("put", 404, "ContainerNotFound"), noPut, []string{"create the container", "STORAGE_CONTAINER"}},
		"put: outage":          {rejecting("put", 500, "InternalError"), begin + "ok key, fail put, skip link, ok delete, ok clock", []string{"storage answered 500 InternalError"}},
		"link: key":            {rejecting("link", 403, "AuthenticationFailed"), but("link,", "fail"), []string{"look at the clock"}},
		"link: network rules":  {rejecting("link", 403, "AuthorizationFailure"), but("link,", "fail"), []string{"network rules"}},
		"link: no access":      {rejecting("link", 409, "PublicAccessNotPermitted"), but("link,", "fail"), []string{"409 PublicAccessNotPermitted"}},
		"link: other bytes":    {rejecting("link", 200, ""), but("link,", "fail"), []string{"other bytes"}},
		"link base: not found": {rejecting("link base", 404, ""), but("link base", "warn"), []string{"/base: probe_signed_url: storage answered 404", "from outside", "warnings: 1"}},
		"delete: no role": {rejecting("delete", 403, "AuthorizationPermissionMismatch"), but("delete", "fail"), []string{
			"may be left behind", contributor, "delete it: " + testUserPrefix, "in the container cats",
		}},
		"delete: not found":       {rejecting("delete", 404, "BlobNotFound"), healthy, nil},
		"copy":                    {directUploads("", 0, ""), withCopy("ok"), nil},
		"copy: not permitted":     {directUploads("copy", 403, "CannotVerifyCopySource"), withCopy("fail"), []string{"network rules", "MAX_DIRECT_UPLOAD_SIZE"}},
		"copy: no role":           {directUploads("copy", 403, "AuthorizationPermissionMismatch"), withCopy("fail"), []string{contributor}},
		"callers":                 {callers(issuer), healthy + ", ok callers", []string{"/issuer for the-api can be verified; their claim oid is the user"}},
		"callers: no answer":      {callers("https://127.0.0.1:1"), healthy + ", fail callers", nil},
		"callers: another issuer": {callers("https://issuer.example/nobody"), healthy + ", fail callers", []string{"fix: OIDC_ISSUER must equal the iss of the tokens"}},

		"clock: 50 s behind":  {clock(-50 * time.Second), healthy, []string{"within 5"}},
		"clock: 2 min behind": {clock(-2 * time.Minute), but("clock", "warn"), []string{"behind storage's; links expire that much too early"}},
		"clock: 10 min ahead": {clock(10 * time.Minute), but("clock", "warn"), []string{"this clock is 10m"}},
		"clock: 6 min behind": {clock(-6 * time.Minute), but("clock", "fail"), []string{"behind storage's; links expire that much too early, short ones at once"}},
		"clock: 16 min ahead": {clock(16 * time.Minute), but("clock", "fail"), []string{"ahead of storage's; from 15m0s on storage rejects new links"}},

		"invalid settings": {
			func(_ *testing.T, e *environment) {
				e.Faults, e.Storage.Container = errors.New("A is wrong\nB is"), ""
			}, "fail settings, fail settings, ok token file, ok exchange, skip key, skip put, skip link, skip clock",
			[]string{"A is wrong", "skipped: the settings of storage are not valid", "failed checks: 2"},
		},
		"no token file setting": {
			func(_ *testing.T, e *environment) { e.Identity.TokenFile = "" },
			"ok settings, skip token file, skip exchange, skip key, skip put, skip link, ok clock",
			[]string{"the settings of the identity are not valid", "some checks were skipped"},
		},
		"no answer to a link": {func(_ *testing.T, e *environment) {
			e.fault = func(check string, _ http.ResponseWriter) bool {
				if check == "link" {
					panic(http.ErrAbortHandler)
				}
				return false
			}
		}, but("link,", "fail"), []string{"fail  link        probe_signed_url: no answer from acct.blob.example"}},
		"no answer to the put": {func(_ *testing.T, e *environment) {
			e.fault = func(check string, _ http.ResponseWriter) bool {
				if check == "put" {
					panic(http.ErrAbortHandler)
				}
				return false
			}
		}, begin + "ok key, fail put, skip link, ok delete, ok clock", []string{"no answer from acct.blob.example"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEnvironment(t)
				if c.change != nil {
					c.change(t, e)
				}
				examine(t.Context(), t, e, c.marks, c.texts...)
				if left := e.server.Names(); len(left) > 0 && name != "delete: no role" && name != "delete: not found" {
					t.Errorf("left: %v", left)
				}
			})
		})
	}
}

func TestInterruptDuringThePutStillDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnvironment(t)
		ctx, cancel := context.WithCancel(t.Context())
		e.fault = func(check string, _ http.ResponseWriter) bool {
			if check == "put" {
				cancel()
				time.Sleep(time.Second) // a deletion that does not wait for the put would come first
			}
			return false
		}
		examine(ctx, t, e, begin+"ok key, ok put, skip link, skip link base, ok delete, skip clock", "the doctor was interrupted", "some checks were skipped")
		if left := e.server.Names(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

func TestDefaultCredentialNeedsNoTokenFile(t *testing.T) {
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "AzureCLICredential")
	t.Setenv("PATH", t.TempDir())
	e := newEnvironment(t)
	e.Identity.Credential, e.Identity.TokenFile = identity.Default, ""
	examine(t.Context(), t, e, "ok settings, fail exchange, skip key, skip put, skip link, ok clock", "AzureCLICredential: executable not found")
}

func TestTokenFileIsChecked(t *testing.T) {
	now := time.Now().Unix()
	claims := func(audience, more string) string { return token(fmt.Sprintf(`{"aud":%s,%s}`, audience, more)) }
	quoted, later := `"`+audience+`"`, fmt.Sprintf(`"exp":%d`, now+60)
	const us, cn = "https://login.microsoftonline.us/", "https://login.chinacloudapi.cn/"
	for _, c := range []struct{ content, host, mark, text string }{
		{claims(quoted, later), "", ok, "audience  " + audience + "\n"},
		{claims(quoted, fmt.Sprintf(`"exp":%d`, now-60)), "", fail, "token is expired (exp)"},
		{claims(quoted, fmt.Sprintf(`"exp":%d,"nbf":%d`, now+7200, now+3600)), "", fail, "token not valid yet (nbf)"},
		{claims(quoted, `"exp":1e300`), "", fail, "does not hold a signed JSON Web Token"},
		{claims(quoted, `"exp":4e18`), "", ok, "issuer    \n"},
		{claims(quoted, `"exp":-4e18`), "", fail, "token is expired (exp)"},
		{token(`{"aud":` + quoted + `}`), "", fail, "does not hold a signed JSON Web Token with an expiry"},
		{claims(`[`+quoted+`,"x"]`, later), "", warn, "audience  " + audience + ", x\n"},
		{claims(quoted, later+`,"sub":"a\nok    sub"`), "", ok, "subject   a ok    sub"},
		{claims(quoted, later+`,"sub":"eyJ0.eyJ1.c2VjcmV0"`), "", ok, "subject   [secret]"},
		{token(`{"aud":7}`), "", fail, "does not hold a signed JSON Web Token"},
		{token(`[]`), "", fail, "does not hold a signed JSON Web Token"},
		{"eyJhbGciOiJub25lIn0.e30.c2VjcmV0", "", fail, "does not hold a signed JSON Web Token"},
		{"eyJ.c2VjcmV0", "", fail, "does not hold a signed JSON Web Token"},
		{" ", "", fail, "there is no federated token"},
		// Each cloud has its audience.
		{claims(`"`+audience+`USGov"`, later), us, ok, "audience  " + audience + "USGov\n"},
		{claims(quoted, later), us, warn, "another audience than " + audience + "USGov,"},
		{claims(`"`+audience+`China"`, later), "https://login.partner.microsoftonline.cn/", ok, ""},
		{claims(`"`+audience+`USGov"`, later), cn, warn, "another audience than " + audience + "China"},
		{claims(`"`+audience+`China"`, later), "https://login.microsoftonline.com/", warn, "another audience than " + audience + ","},
	} {
		e := newEnvironment(t)
		e.Identity.AuthorityHost = c.host
		e.writeToken(t, c.content)
		if out := checkToken(t, e); !strings.HasPrefix(out, c.mark) || !strings.Contains(out, c.text) || strings.Contains(out, "eyJ") || strings.Contains(out, "c2VjcmV0") {
			t.Errorf("%s at %q: %s; want %s and %s", c.content, c.host, out, c.mark, c.text)
		}
	}
	t.Setenv("AZURE_KUBERNETES_TOKEN_PROXY", "https://proxy.example")
	e := newEnvironment(t)
	e.writeToken(t, claims(`["api://AKSIdentityBinding"]`, later))
	if out := checkToken(t, e); !strings.HasPrefix(out, ok) || !strings.Contains(out, "no federated credential has to match it") {
		t.Errorf("identity bindings: %s", out)
	}
}

// checkToken returns the report of the check of the token file.
func checkToken(t *testing.T, e *environment) string {
	var out strings.Builder
	r := &run{Options: e.Options, report: report{out: &out, count: map[string]int{}}, failed: map[string]error{}}
	r.check(t.Context(), "token file", nil, r.tokenFile)
	return out.String()
}

func TestReportRedactsSecrets(t *testing.T) {
	var out strings.Builder
	r := &report{out: &out, count: map[string]int{}}
	r.problem("link", errors.New(`at https://a.example.com/b?se=1&sig=c2VjcmV0%3D and ?Sig%3Dc2VjcmV0 with eyJhbGciOiJub25lIn0.e30.c2VjcmV0`))
	if s := out.String(); strings.Contains(s, "c2VjcmV0") || strings.Count(s, "[secret]") != 3 {
		t.Error(s)
	}
}

func TestNetworkErrorsHaveAFix(t *testing.T) {
	for text, want := range map[string]string{
		"dial tcp: lookup x.blob.core.windows.net on 10.0.0.10:53: no such host": "DNS",
		"tls: failed to verify certificate: x509: unknown authority":             "SSL_CERT_FILE",
		"dial tcp 20.1.1.1:443: i/o timeout":                                     "egress",
		"net/http: TLS handshake timeout":                                        "egress",
		"context deadline exceeded":                                              "egress",
		"proxyconnect tcp: dial tcp 10.0.0.1:3128: connection refused":           "NO_PROXY",
		"storage answered 400 InvalidInput":                                      "",
	} {
		if got := networkFix(text); !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q; want %q in it", text, got, want)
		}
	}
}
