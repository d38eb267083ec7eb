package doctor

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/shared/access"
	"cats.example/signer/internal/auth"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/identity"
)

const clientID = "11111111-1111-4111-8111-111111111111"

// azure is an Entra ID and a storage account that speak just enough of the
// protocols, and answer as fault says when that is set.
type azure struct {
	url string

	mu    sync.Mutex
	blobs map[string]string
	fault func(op string, w http.ResponseWriter) bool // true when it has answered
}

// op names what a request is about.
func op(r *http.Request) string {
	q := r.URL.Query()
	switch {
	case strings.Contains(r.URL.Path, "/v2.0/"):
		return "exchange"
	case strings.HasPrefix(r.URL.Path, "/issuer/"):
		return "callers"
	case q.Get("comp") == "userdelegationkey":
		return "key"
	case r.Header.Get("X-Ms-Copy-Source") != "":
		return "copy"
	case q.Get("sig") != "" && strings.HasPrefix(r.URL.Path, "/base/"):
		return "link base"
	case q.Get("sig") != "":
		return "link"
	case q.Get("restype") == "container":
		return "clock"
	}
	return strings.ToLower(r.Method) // put or delete
}

func (a *azure) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	fault := a.fault
	a.mu.Unlock()
	if fault != nil && fault(op(r), w) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	name := strings.TrimPrefix(r.URL.Path, "/base")
	switch op(r) {
	case "exchange":
		w.Header().Set("Content-Type", "application/json")
		tenant := a.url + "/tenant.example"
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": tenant + "/v2.0", "authorization_endpoint": tenant + "/oauth2/v2.0/authorize", "token_endpoint": tenant + "/oauth2/v2.0/token",
			"token_type": "Bearer", "expires_in": 3600, "access_token": "eyJsecret",
		})
	case "callers": // the configuration and the keys in one; the key is from RFC 7517 appendix A.1
		fmt.Fprintf(w, `{"issuer":"%[1]s/issuer","jwks_uri":"%[1]s/issuer/keys","keys":[{"kty":"EC","crv":"P-256",
			"x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`, a.url)
	case "key":
		field := func(tag string) string {
			_, after, _ := strings.Cut(string(body), "<"+tag+">")
			value, _, _ := strings.Cut(after, "</")
			return value
		}
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprintf(w, `<?xml version="1.0"?><UserDelegationKey><SignedOid>o</SignedOid><SignedTid>t</SignedTid><SignedStart>%s</SignedStart><SignedExpiry>%s</SignedExpiry><SignedService>b</SignedService><SignedVersion>2024-11-04</SignedVersion><Value>a2V5</Value></UserDelegationKey>`, field("Start"), field("Expiry"))
	case "put":
		a.blobs[name] = string(body)
		w.WriteHeader(http.StatusCreated)
	case "copy":
		w.WriteHeader(http.StatusCreated)
	case "delete":
		delete(a.blobs, name)
		w.WriteHeader(http.StatusAccepted)
	case "link", "link base":
		if r.Header.Get("Authorization") != "" {
			w.WriteHeader(http.StatusTeapot)
		}
		_, _ = io.WriteString(w, a.blobs[name])
	default:
		refuse(w, http.StatusConflict, "PublicAccessNotPermitted")
	}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("X-Ms-Error-Code", code)
	w.WriteHeader(status)
}

// token returns a token with claims and an invalid signature.
func token(claims string) string {
	return "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2VjcmV0"
}

// healthy returns settings with which all is well, and who answers.
func healthy(t *testing.T) (Options, *azure) {
	t.Helper()
	back := &azure{blobs: map[string]string{}}
	srv := httptest.NewTLSServer(back)
	t.Cleanup(srv.Close)
	back.url = srv.URL
	client := blobstore.NewTransport()
	tls := client.Transport.(*http.Transport).TLSClientConfig
	tls.RootCAs, tls.ServerName = srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, "example.com"
	t.Cleanup(client.CloseIdleConnections)
	file := filepath.Join(t.TempDir(), "token")
	writeToken(t, file, token(fmt.Sprintf(`{"iss":"https://issuer.example.com","sub":"system:serviceaccount:cats-api:cats-api-sa","aud":["api://AzureADTokenExchange"],"exp":%d}`, time.Now().Add(time.Hour).Unix())))
	return Options{
		Identity: identity.Settings{
			Credential: identity.WorkloadIdentity, ClientID: clientID, TenantID: "tenant.example", TokenFile: file,
			AuthorityHost: srv.URL + "/", DisableInstanceDiscovery: true,
		},
		Storage: blobstore.Settings{
			AccountURL: "https://acct.blob.localhost:" + srv.URL[strings.LastIndex(srv.URL, ":")+1:],
			Container:  "cats", BlobName: "cat", LinkBaseURL: srv.URL + "/base", LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour,
		},
		Transport: client,
	}, back
}

func writeToken(t *testing.T, file, token string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
}

// examine runs the doctor and wants the marks of the checks, in their order, and
// each part in the report, and no secret.
func examine(ctx context.Context, t *testing.T, opts Options, marks string, parts ...string) {
	t.Helper()
	var out strings.Builder
	healthy := Run(ctx, opts, &out)
	var checks []string
	for _, m := range regexp.MustCompile(`(?m)^(ok|warn|fail|skip) +(\w+(?: \w+)*)  `).FindAllStringSubmatch(out.String(), -1) {
		checks = append(checks, m[1]+" "+m[2])
	}
	if got := strings.Join(checks, ", "); got != marks {
		t.Errorf("got  %s\nwant %s\n%s", got, marks, &out)
	}
	if want := !strings.Contains(marks, "fail ") && !strings.Contains(out.String(), "not all was tried"); healthy != want {
		t.Errorf("healthy is %v\n%s", healthy, &out)
	}
	for _, part := range parts {
		if !strings.Contains(out.String(), part) {
			t.Errorf("%q is not in\n%s", part, &out)
		}
	}
	for _, no := range []string{"eyJ", "sig=", "c2VjcmV0"} {
		if strings.Contains(out.String(), no) {
			t.Errorf("%q is in\n%s", no, &out)
		}
	}
}

const (
	begin = "ok settings, ok token file, ok exchange, "
	well  = begin + "ok key, ok put, ok link, ok link base, ok delete, ok clock"
)

func TestAllIsWell(t *testing.T) {
	opts, back := healthy(t)
	examine(t.Context(), t, opts, well, "system:serviceaccount:cats-api:cats-api-sa", "https://issuer.example.com", "all works")
	if len(back.blobs) > 0 {
		t.Errorf("left: %v", back.blobs)
	}
	opts.Storage.LinkBaseURL = ""
	examine(t.Context(), t, opts, strings.Replace(well, ", ok link base", "", 1))
}

func TestWhereTicketsAreGivenStorageMustCopy(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		marks  string
		says   []string
	}{
		{201, "", strings.Replace(well, "ok delete", "ok copy, ok delete", 1), nil},
		{403, "CannotVerifyCopySource", strings.Replace(well, "ok delete", "fail copy, ok delete", 1), []string{"network rules", "MAX_DIRECT_UPLOAD_SIZE"}},
		{403, "AuthorizationPermissionMismatch", strings.Replace(well, "ok delete", "fail copy, ok delete", 1), []string{"Storage Blob Data Contributor"}},
	} {
		opts, back := healthy(t)
		opts.Storage.MaxDirectUploadSize = 1 << 30
		back.fault = func(op string, w http.ResponseWriter) bool {
			if op == "copy" {
				refuse(w, c.status, c.code)
			}
			return op == "copy"
		}
		examine(t.Context(), t, opts, c.marks, c.says...)
		if len(back.blobs) > 0 {
			t.Errorf("left: %v", back.blobs)
		}
	}
}

func TestEachRefusalOfStorageIsToldWithWhatToDo(t *testing.T) {
	const delegator, contributor = "Storage Blob Delegator", "Storage Blob Data Contributor"
	for _, c := range []struct {
		op     string
		status int
		code   string
		marks  string
		says   []string
	}{
		{"key", 403, "AuthorizationPermissionMismatch", begin + "fail key, ok put, skip link, ok delete, ok clock", []string{
			"fix: give the identity the role " + delegator + " on the storage account; a new one takes minutes",
			`az role assignment create --assignee ` + clientID + ` --role "` + delegator + `" --scope "$(az storage account show --name acct --query id --output tsv)"`,
		}},
		{"key", 403, "AuthorizationFailure", begin + "fail key, ok put, skip link, ok delete, ok clock", []string{"network rules"}},
		{"key", 401, "InvalidAuthenticationInfo", begin + "fail key, ok put, skip link, ok delete, ok clock", []string{"AZURE_TENANT_ID"}},
		{"put", 403, "AuthorizationPermissionMismatch", begin + "ok key, fail put, skip link, ok clock", []string{
			"fix: give the identity the role " + contributor + " on the container", "takes minutes",
			`--role "` + contributor + `"`, `/blobServices/default/containers/cats"`,
		}},
		{"put", 403, "AuthorizationFailure", begin + "ok key, fail put, skip link, ok clock", []string{"network rules"}},
		{"put", 404, "ContainerNotFound", begin + "ok key, fail put, skip link, ok clock", []string{"create the container", "STORAGE_CONTAINER"}},
		{"put", 500, "InternalError", begin + "ok key, fail put, skip link, ok delete, ok clock", []string{"storage answered 500 InternalError"}},
		{"link", 403, "AuthenticationFailed", strings.Replace(well, "ok link,", "fail link,", 1), []string{"look at the clock"}},
		{"link", 403, "AuthorizationFailure", strings.Replace(well, "ok link,", "fail link,", 1), []string{"network rules"}},
		{"link", 409, "PublicAccessNotPermitted", strings.Replace(well, "ok link,", "fail link,", 1), []string{"409 PublicAccessNotPermitted"}},
		{"link", 200, "", strings.Replace(well, "ok link,", "fail link,", 1), []string{"other bytes"}},
		{"link base", 404, "", strings.Replace(well, "ok link base", "warn link base", 1), []string{"/base: storage answered 404", "from outside", "warnings: 1"}},
		{"delete", 403, "AuthorizationPermissionMismatch", strings.Replace(well, "ok delete", "fail delete", 1), []string{
			"may be left behind", contributor, "delete it by hand: " + blobstore.ScratchPrefix, "in the container cats",
		}},
		{"delete", 404, "BlobNotFound", well, nil},
	} {
		opts, back := healthy(t)
		back.fault = func(op string, w http.ResponseWriter) bool {
			if op == c.op {
				refuse(w, c.status, c.code)
			}
			return op == c.op
		}
		t.Run(fmt.Sprint(c.op, c.status, c.code), func(t *testing.T) { examine(t.Context(), t, opts, c.marks, c.says...) })
		if len(back.blobs) > 0 && c.op != "delete" {
			t.Errorf("%s: left: %v", c.op, back.blobs)
		}
	}
}

func TestDoctorHidesURLOfUnansweredLink(t *testing.T) {
	opts, back := healthy(t)
	back.fault = func(op string, _ http.ResponseWriter) bool {
		if op == "link" {
			panic(http.ErrAbortHandler)
		}
		return false
	}
	examine(t.Context(), t, opts, strings.Replace(well, "ok link,", "fail link,", 1), "fail  link        no answer from acct.blob.localhost")
}

func TestDoctorFetchesTheIssuersKeys(t *testing.T) {
	for _, c := range []struct{ issuer, mark, says string }{
		{"URL/issuer", "ok callers", "/issuer for the-api are verified, and their oid is the user"},
		{"https://127.0.0.1:1", "fail callers", "fix: nothing answers on this port"},
		{"URL/nobody", "fail callers", "fix: OIDC_ISSUER must equal the iss of the tokens"},
	} {
		opts, back := healthy(t)
		opts.Callers = auth.Settings{Policy: access.Policy{Issuer: strings.Replace(c.issuer, "URL", back.url, 1)}, Audience: "the-api", UserClaim: "oid"}
		examine(t.Context(), t, opts, well+", "+c.mark, c.says)
	}
}

func TestAPutWithoutAnAnswerIsDeletedAllTheSame(t *testing.T) {
	opts, back := healthy(t)
	back.fault = func(op string, _ http.ResponseWriter) bool {
		if op != "put" {
			return false
		}
		back.mu.Lock()
		back.blobs["stored"] = ""
		back.mu.Unlock()
		panic(http.ErrAbortHandler) // stored, but nobody heard of it
	}
	examine(t.Context(), t, opts, begin+"ok key, fail put, skip link, ok delete, ok clock", "no answer from acct.blob.localhost")
}

func TestDoctorMarksClockSkewBySize(t *testing.T) {
	for _, c := range []struct {
		storage time.Duration // ahead of us
		mark    string
		says    string
	}{
		{0, "ok", "within "},
		{50 * time.Second, "ok", "within 5"},
		{2 * time.Minute, "warn", "behind storage's; links end that much too early"},
		{-10 * time.Minute, "warn", "this clock is 10m"},
		{6 * time.Minute, "fail", "behind storage's; links end that much too early, short ones at once"},
		{-16 * time.Minute, "fail", "ahead of storage's; from 15m0s on storage rejects new links"},
	} {
		opts, back := healthy(t)
		back.fault = func(_ string, w http.ResponseWriter) bool {
			w.Header().Set("Date", time.Now().Add(c.storage).UTC().Format(http.TimeFormat))
			return false
		}
		examine(t.Context(), t, opts, strings.Replace(well, "ok clock", c.mark+" clock", 1), c.says)
	}
}

func TestDoctorReportsTokenFileFaults(t *testing.T) {
	const audience = `"aud":"api://AzureADTokenExchange",`
	now := time.Now().Unix()
	for _, c := range []struct{ content, mark, says string }{
		{token(fmt.Sprintf(`{%s"exp":%d}`, audience, now-60)), "fail", "token is expired (exp)"},
		{token(fmt.Sprintf(`{%s"exp":%d,"nbf":%d}`, audience, now+7200, now+3600)), "fail", "token not valid yet (nbf)"},
		{token(fmt.Sprintf(`{%s"exp":1e300}`, audience)), "fail", "does not hold a signed JSON Web Token"},
		{token(fmt.Sprintf(`{%s"exp":4e18}`, audience)), "ok", "issuer    \n"},
		{token(fmt.Sprintf(`{%s"exp":-4e18}`, audience)), "fail", "token is expired (exp)"},
		{token(`{` + audience[:len(audience)-1] + `}`), "fail", "does not hold a signed JSON Web Token with an expiry"},
		{token(fmt.Sprintf(`{"aud":["api://AzureADTokenExchange","x"],"exp":%d}`, now+60)), "warn", "audience  api://AzureADTokenExchange, x\n"},
		{token(fmt.Sprintf(`{%s"exp":%d,"sub":"a\nok    sub"}`, audience, now+60)), "ok", "subject   a ok    sub"},
		{token(fmt.Sprintf(`{%s"exp":%d,"sub":"eyJ0.eyJ1.c2VjcmV0"}`, audience, now+60)), "ok", "subject   [secret]"},
		{token(`{"aud":7}`), "fail", "does not hold a signed JSON Web Token"},
		{token(`[]`), "fail", "does not hold a signed JSON Web Token"},
		{"eyJhbGciOiJub25lIn0.e30.c2VjcmV0", "fail", "does not hold a signed JSON Web Token"},
		{"eyJ.c2VjcmV0", "fail", "does not hold a signed JSON Web Token"},
	} {
		opts, _ := healthy(t)
		writeToken(t, opts.Identity.TokenFile, c.content)
		examine(t.Context(), t, opts, strings.Replace(well, "ok token file", c.mark+" token file", 1), c.says)
	}
}

func TestTokenFileIsComparedWithTheCloudsAudience(t *testing.T) {
	const public = "api://AzureADTokenExchange"
	for _, c := range []struct{ host, audience, mark, says string }{
		{"https://login.microsoftonline.us/", public + "USGov", "ok ", "audience  " + public + "USGov\n"},
		{"https://login.microsoftonline.us/", public, "warn", "another audience than " + public + "USGov,"},
		{"https://login.partner.microsoftonline.cn/", public + "China", "ok ", "audience  " + public + "China\n"},
		{"https://login.chinacloudapi.cn/", public + "USGov", "warn", "another audience than " + public + "China"},
		{"https://login.microsoftonline.com/", public + "China", "warn", "another audience than " + public + ","},
		{"", public, "ok ", "audience  " + public + "\n"},
	} {
		opts, _ := healthy(t)
		opts.Identity.AuthorityHost = c.host
		writeToken(t, opts.Identity.TokenFile, token(fmt.Sprintf(`{"aud":[%q],"exp":%d}`, c.audience, time.Now().Unix()+60)))
		var out strings.Builder
		v := &visit{Options: opts, report: report{out: &out, count: map[string]int{}}, failed: map[string]error{}}
		v.try(t.Context(), "token file", nil, v.tokenFile)
		if !strings.HasPrefix(out.String(), c.mark) || !strings.Contains(out.String(), c.says) {
			t.Errorf("%s at %s: %s; want %s and %s", c.audience, c.host, &out, c.mark, c.says)
		}
	}
}

func TestIdentityBindingsHaveAnAudienceOfTheirOwn(t *testing.T) {
	opts, _ := healthy(t)
	t.Setenv("AZURE_KUBERNETES_TOKEN_PROXY", "https://proxy.example")
	writeToken(t, opts.Identity.TokenFile, token(fmt.Sprintf(`{"aud":["api://AKSIdentityBinding"],"exp":%d}`, time.Now().Unix()+60)))
	var out strings.Builder
	v := &visit{Options: opts, report: report{out: &out, count: map[string]int{}}, failed: map[string]error{}}
	v.try(t.Context(), "token file", nil, v.tokenFile)
	if !strings.HasPrefix(out.String(), "ok ") || !strings.Contains(out.String(), "no federated credential has to match it") {
		t.Error(out.String())
	}
}

func TestDefaultCredentialNeedsNoTokenFile(t *testing.T) {
	opts, _ := healthy(t)
	opts.Identity.Credential, opts.Identity.TokenFile = identity.Default, ""
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "AzureCLICredential")
	t.Setenv("PATH", t.TempDir())
	examine(t.Context(), t, opts, "ok settings, fail exchange, skip key, skip put, skip link, ok clock", "AzureCLICredential: executable not found")
}

func TestWhatTheSettingsDoNotSayIsNotTried(t *testing.T) {
	opts, _ := healthy(t)
	opts.Faults, opts.Storage.Container = errors.New("A is wrong\nB is"), ""
	examine(t.Context(), t, opts, "fail settings, fail settings, ok token file, ok exchange, skip key, skip put, skip link, skip clock", "A is wrong", "the settings of storage are not valid")
	opts, _ = healthy(t)
	opts.Identity.TokenFile = ""
	examine(t.Context(), t, opts, "ok settings, skip token file, skip exchange, skip key, skip put, skip link, ok clock", "the settings of the identity are not valid")
}

func TestAnInterruptAmidThePutStillDeletes(t *testing.T) {
	opts, back := healthy(t)
	ctx, cancel := context.WithCancel(t.Context())
	back.fault = func(op string, _ http.ResponseWriter) bool {
		if op == "put" {
			cancel()
			time.Sleep(50 * time.Millisecond) // for a deletion that does not wait for the put
		}
		return false
	}
	examine(ctx, t, opts, begin+"ok key, ok put, skip link, skip link base, ok delete, skip clock", "it was interrupted", "not all was tried")
	if len(back.blobs) > 0 {
		t.Errorf("left: %v", back.blobs)
	}
}

func TestNoSecretOfAnErrorIsWritten(t *testing.T) {
	var out strings.Builder
	r := &report{out: &out, count: map[string]int{}}
	r.problem("link", errors.New(`at https://a.example.com/b?se=1&sig=c2VjcmV0%3D and ?Sig%3Dc2VjcmV0 with eyJhbGciOiJub25lIn0.e30.c2VjcmV0`))
	if s := out.String(); strings.Contains(s, "c2VjcmV0") || strings.Count(s, "[secret]") != 3 {
		t.Error(s)
	}
}

func TestAnErrorOfTheNetworkSaysWhereToLook(t *testing.T) {
	for said, want := range map[string]string{
		"dial tcp: lookup x.blob.core.windows.net on 10.0.0.10:53: no such host": "DNS",
		"tls: failed to verify certificate: x509: unknown authority":             "SSL_CERT_FILE",
		"dial tcp 20.1.1.1:443: i/o timeout":                                     "egress",
		"net/http: TLS handshake timeout":                                        "egress",
		"context deadline exceeded":                                              "egress",
		"proxyconnect tcp: dial tcp 10.0.0.1:3128: connection refused":           "NO_PROXY",
	} {
		if got := network(said); !strings.Contains(got, want) {
			t.Errorf("%s: %q; want %s in it", said, got, want)
		}
	}
	if got := network("storage answered 400 InvalidInput"); got != "" {
		t.Errorf("an answer is no error of the network: %q", got)
	}
}
