package oauthhttp_test

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// Whatever comes, an endpoint answers, as its description says, and never with a failure of ours or a redirect to where
// the client is not.

func FuzzForms(f *testing.F) {
	s := newSite(f, func(_ *apitoken.Config, o *oauthhttp.Options) { o.Registration = &oauthhttp.Registration{} })
	s.client("app", nil)
	s.public("spa", nil)
	for _, body := range []string{
		"grant_type=client_credentials", "grant_type=refresh_token&refresh_token=x&client_id=spa", "grant_type=authorization_code&code=x&code_verifier=y&client_id=spa",
		"grant_type=urn:ietf:params:oauth:grant-type:device_code&device_code=x&client_id=spa", "client_id=app&client_assertion=e30.e30.AA&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
		"token=x&resource=a&resource=b", "authorization_details=%5B%7B%22type%22%3A1%7D%5D", "a=%ff&b;c=&&=",
	} {
		f.Add("/token", body, "Basic YXBwOng=", "")
		f.Add("/par", body, "", "e30.e30.AA")
	}
	paths := []string{"/token", "/par", "/revoke", "/introspect", "/device_authorization"}
	f.Fuzz(func(t *testing.T, path, body, authorization, proof string) {
		if !strings.Contains(strings.Join(paths, " "), path) || !strings.HasPrefix(path, "/") || strings.Contains(path, " ") {
			path = "/token"
		}
		r := formRequest(path, body)
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		if proof != "" {
			r.Header.Set("DPoP", proof)
		}
		w := httptest.NewRecorder()
		s.h.ServeHTTP(w, r)
		require.Less(t, w.Code, 500, w.Body.String())
	})
}

func FuzzAuthorize(f *testing.F) {
	s := newSite(f, nil)
	s.client("app", nil)
	s.public("cli", func(c *apitoken.Client) { c.RedirectURIs = []string{"http://127.0.0.1/cb", "com.example.app:/cb"} })
	f.Add(authorization("app").Encode())
	f.Add(authorization("cli", "redirect_uri", "http://127.0.0.1:9/cb").Encode())
	f.Add(authorization("cli", "redirect_uri", "http://127.0.0.1:9@evil.example.com/cb").Encode())
	f.Add("client_id=app&request_uri=urn:ietf:params:oauth:request_uri:x")
	f.Add("client_id=app&client_id=cli&state=%0d%0aLocation:x")
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest("GET", testIssuer+"/authorize", nil)
		r.URL.RawQuery = query
		w := httptest.NewRecorder()
		s.h.ServeHTTP(w, r)
		require.Less(t, w.Code, 500, w.Body.String())
		if to := w.Header().Get("Location"); to != "" {
			u, err := url.Parse(to)
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(to, callback+"?") || u.Scheme == "com.example.app" || u.Hostname() == "127.0.0.1" && u.Path == "/cb", to)
			require.NotContains(t, to, "\n")
		}
	})
}
