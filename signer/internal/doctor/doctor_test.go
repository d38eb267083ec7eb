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
	"strconv"
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
	e := &environment{server: storagetest.New(t)}
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
		case "link", "base":
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
		Transport: e.server.Transport,
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
		return "base"
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

// change lets happen what testdata/reports.txt says.
func (e *environment) change(t *testing.T, what string, interrupt func()) {
	t.Helper()
	words := append(strings.Fields(what), "")
	e.DirectUploads = words[0] == "direct" || words[1] == "copy"
	e.fault = func(check string, w http.ResponseWriter) bool {
		switch {
		case words[0] == "clock":
			ahead, err := time.ParseDuration(words[1])
			if err != nil {
				t.Error(err)
			}
			w.Header().Set("Date", time.Now().Add(-ahead).UTC().Format(http.TimeFormat))
		case check != words[1]:
		case words[0] == "interrupt":
			interrupt()
			time.Sleep(time.Second) // a deletion that does not wait for the put would come first
		case words[0] == "silent":
			panic(http.ErrAbortHandler)
		case words[0] == "reject":
			storagetest.Reject(w, int(storagetest.Number(t, words[2])), words[3])
			return true
		}
		return false
	}
	switch words[0] {
	case "callers":
		e.Callers = auth.Settings{Policy: access.Policy{Issuer: "https://" + words[1]}, Audience: "the-api", UserClaim: "oid"}
	case "invalid":
		e.Faults, e.Storage.Container = errors.New("A is wrong\nB is"), ""
	case "no":
		if words[1] == "link" {
			e.Signing.LinkBaseURL = ""
		} else {
			e.Identity.TokenFile = ""
		}
	}
}

func TestReportTellsWhatWorksAndWhatToDo(t *testing.T) {
	table, err := os.ReadFile("testdata/reports.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, paragraph := range strings.Split(strings.TrimSpace(string(table)), "\n\n")[1:] { // the first one is a comment
		lines := strings.Split(paragraph, "\n")
		t.Run(lines[0], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEnvironment(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				e.change(t, lines[0], cancel)
				examine(ctx, t, e, lines[1], lines[2:]...)
				if left := e.server.Names(); len(left) > 0 && !strings.HasPrefix(lines[0], "reject delete") {
					t.Errorf("left: %v", left)
				}
			})
		})
	}
}

func TestDefaultCredentialNeedsNoTokenFile(t *testing.T) {
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "AzureCLICredential")
	t.Setenv("PATH", t.TempDir())
	e := newEnvironment(t)
	e.Identity.Credential, e.Identity.TokenFile = identity.Default, ""
	examine(t.Context(), t, e, "ok settings, fail exchange, skip key, skip put, skip link, ok clock", "AzureCLICredential: executable not found")
}

func TestTokenFileIsChecked(t *testing.T) {
	now := regexp.MustCompile(`NOW[+-]\d+`)
	for _, fields := range storagetest.Rows(t, "tokens.txt") {
		content := now.ReplaceAllStringFunc(fields[0], func(s string) string {
			seconds, _ := strconv.Atoi(s[3:])
			return fmt.Sprint(time.Now().Unix() + int64(seconds))
		})
		if strings.HasPrefix(content, `"`) {
			if !strings.Contains(content, `"aud"`) {
				content += `,"aud":"` + audience + `"`
			}
			content = token("{" + content + "}")
		}
		e := newEnvironment(t)
		e.Identity.AuthorityHost = fields[1]
		e.writeToken(t, content)
		if out := checkToken(t, e); !strings.HasPrefix(out, fields[2]) || !strings.Contains(out, fields[3]) || strings.Contains(out, "eyJ") || strings.Contains(out, "c2VjcmV0") {
			t.Errorf("%q: %s", fields, out)
		}
	}
	t.Setenv("AZURE_KUBERNETES_TOKEN_PROXY", "https://proxy.example")
	e := newEnvironment(t)
	e.writeToken(t, token(fmt.Sprintf(`{"aud":"api://AKSIdentityBinding","exp":%d}`, time.Now().Unix()+60)))
	if out := checkToken(t, e); !strings.HasPrefix(out, "ok") || !strings.Contains(out, "no federated credential has to match it") {
		t.Errorf("identity bindings: %s", out)
	}
}

// checkToken returns the report of the check of the token file.
func checkToken(t *testing.T, e *environment) string {
	var out strings.Builder
	r := &run{Options: e.Options, out: &out, count: map[string]int{}, failed: map[string]error{}}
	r.check(t.Context(), "token file", r.tokenFile)
	return out.String()
}

func TestReportRedactsSecrets(t *testing.T) {
	var out strings.Builder
	r := &run{out: &out, count: map[string]int{}}
	r.problem("link", errors.New(`at https://a.example.com/b?se=1&sig=c2VjcmV0%3D and ?Sig%3Dc2VjcmV0 with eyJhbGciOiJub25lIn0.e30.c2VjcmV0`))
	if s := out.String(); strings.Contains(s, "c2VjcmV0") || strings.Count(s, "[secret]") != 3 {
		t.Error(s)
	}
}

func TestNetworkErrorsHaveAFix(t *testing.T) {
	for text, want := range map[string]string{
		"net/http: TLS handshake timeout":                              "egress",
		"proxyconnect tcp: dial tcp 10.0.0.1:3128: connection refused": "NO_PROXY",
		"storage answered 400 InvalidInput":                            "",
	} {
		if got := networkFix(text); !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q; want %q in it", text, got, want)
		}
	}
}
