package oauthhttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/bodytime"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/remote"
)

var authMethods = []string{"client_secret_basic", "client_secret_post", "private_key_jwt", "tls_client_auth", "self_signed_tls_client_auth"}

// authMethods are how clients prove who they are, and how they may come: public ones prove nothing.
func (h *Handler) authMethods() (proved, all []string) {
	if h.fapi {
		return fapiMethods, fapiMethods
	}
	return authMethods, append(slices.Clone(authMethods), "none")
}

// serverMetadata is RFC 8414 §2 and what other RFCs add to it.
type serverMetadata struct {
	Issuer            string          `json:"issuer"`
	Authorization     string          `json:"authorization_endpoint,omitempty"`
	Token             string          `json:"token_endpoint"`
	JWKS              string          `json:"jwks_uri"`
	Registration      string          `json:"registration_endpoint,omitempty"`
	Documents         bool            `json:"client_id_metadata_document_supported,omitempty"`
	Scopes            apitoken.Scopes `json:"scopes_supported,omitempty"`
	ResponseTypes     []string        `json:"response_types_supported"`
	ResponseModes     []string        `json:"response_modes_supported,omitempty"`
	GrantTypes        []string        `json:"grant_types_supported"`
	GrantProfiles     []string        `json:"authorization_grant_profiles_supported,omitempty"`
	TokenAuth         []string        `json:"token_endpoint_auth_methods_supported"`
	TokenAuthAlgs     []string        `json:"token_endpoint_auth_signing_alg_values_supported"`
	Revocation        string          `json:"revocation_endpoint"`
	RevocationAuth    []string        `json:"revocation_endpoint_auth_methods_supported"`
	RevocationAlgs    []string        `json:"revocation_endpoint_auth_signing_alg_values_supported"`
	Introspection     string          `json:"introspection_endpoint"`
	IntrospectionAuth []string        `json:"introspection_endpoint_auth_methods_supported"`
	IntrospectionAlgs []string        `json:"introspection_endpoint_auth_signing_alg_values_supported"`
	IntrospectionSign []string        `json:"introspection_signing_alg_values_supported,omitempty"` // RFC 9701 §7
	Challenges        []string        `json:"code_challenge_methods_supported,omitempty"`
	Pushed            string          `json:"pushed_authorization_request_endpoint,omitempty"`
	RequirePushed     bool            `json:"require_pushed_authorization_requests,omitempty"`
	ResponseIssuer    bool            `json:"authorization_response_iss_parameter_supported,omitempty"` // RFC 9207 §3
	Device            string          `json:"device_authorization_endpoint,omitempty"`
	DPoPAlgs          []string        `json:"dpop_signing_alg_values_supported"`
	CertificateBound  bool            `json:"tls_client_certificate_bound_access_tokens"`
	Aliases           *mtlsAliases    `json:"mtls_endpoint_aliases,omitempty"`
	DetailTypes       []string        `json:"authorization_details_types_supported,omitempty"`
	Resources         []string        `json:"protected_resources,omitempty"` // RFC 9728 §4
	Revocations       string          `json:"apitoken_revocations_endpoint"` // package remote's feed
	Description       string          `json:"service_documentation,omitempty"`
}

// mtlsAliases is RFC 8705 §5.
type mtlsAliases struct {
	Token         string `json:"token_endpoint"`
	Revocation    string `json:"revocation_endpoint"`
	Introspection string `json:"introspection_endpoint"`
	Pushed        string `json:"pushed_authorization_request_endpoint,omitempty"`
	Device        string `json:"device_authorization_endpoint,omitempty"`
	Revocations   string `json:"apitoken_revocations_endpoint"`
}

func (h *Handler) metadata() *serverMetadata {
	algs := h.svc.ProofAlgorithms()
	proved, named := h.authMethods()
	m := &serverMetadata{
		Issuer: h.svc.Issuer(), Token: h.base + tokenPath, JWKS: h.base + jwksPath, Scopes: h.o.Scopes, ResponseTypes: []string{},
		GrantTypes: []string{granttype.ClientCredentials, granttype.RefreshToken, granttype.TokenExchange},
		TokenAuth:  named, TokenAuthAlgs: algs,
		Revocation: h.base + revokePath, RevocationAuth: named, RevocationAlgs: algs,
		Introspection: h.base + introspectPath, IntrospectionAuth: proved, IntrospectionAlgs: algs,
		IntrospectionSign: h.keyAlgs(), DPoPAlgs: algs, CertificateBound: true, Revocations: remote.FeedURL(h.base), Description: h.base + openAPIPath,
	}
	if h.o.MutualTLS != "" {
		m.Aliases = &mtlsAliases{Token: h.o.MutualTLS + tokenPath, Revocation: h.o.MutualTLS + revokePath, Introspection: h.o.MutualTLS + introspectPath,
			Revocations: remote.FeedURL(h.o.MutualTLS)}
	}
	if h.o.Consent != nil {
		m.Authorization, m.Pushed, m.RequirePushed, m.ResponseIssuer = h.base+authorizePath, h.base+parPath, h.o.RequirePushed, true
		m.ResponseTypes, m.ResponseModes, m.Challenges = []string{"code"}, []string{"query"}, []string{"S256"}
		m.GrantTypes = append(m.GrantTypes, granttype.AuthorizationCode)
		if m.Aliases != nil {
			m.Aliases.Pushed = h.o.MutualTLS + parPath
		}
	}
	if len(h.o.Assertions) > 0 {
		m.GrantTypes = append(m.GrantTypes, granttype.JWTBearer)
	}
	if slices.ContainsFunc(h.o.Assertions, func(a AssertionIssuer) bool { return a.IDJAG }) {
		m.GrantProfiles = []string{profileIDJAG}
	}
	if h.o.DevicePage != "" {
		m.Device = h.base + devicePath
		m.GrantTypes = append(m.GrantTypes, granttype.DeviceCode)
		if m.Aliases != nil {
			m.Aliases.Device = h.o.MutualTLS + devicePath
		}
	}
	if h.o.Registration != nil {
		m.Registration = h.base + registerPath
	}
	m.Documents = h.o.Documents != nil
	if h.o.Details != nil {
		m.DetailTypes = h.o.Details.Types
	}
	for _, r := range h.o.Resources {
		m.Resources = append(m.Resources, r.Resource)
	}
	return m
}

// keyAlgs are those of the published keys that sign responses to introspection: not of those that sign for one audience's
// tokens alone. They change when keys of another kind are imported.
func (h *Handler) keyAlgs() (algs []string) {
	doc, err := h.svc.SigningKeys.JWKS(context.Background(), "") // of this process's memory
	var set struct {
		Keys []struct {
			Alg      string `json:"alg"`
			Audience string `json:"apitoken_aud"`
		} `json:"keys"`
	}
	if err != nil || json.Unmarshal(doc, &set) != nil {
		return nil
	}
	for _, k := range set.Keys {
		if k.Audience == "" && !slices.Contains(algs, k.Alg) {
			algs = append(algs, k.Alg)
		}
	}
	return algs
}

// announced is the metadata as the host wants them told.
func (h *Handler) announced() ([]byte, error) {
	doc, err := json.Marshal(h.metadata())
	if err != nil || h.o.Metadata == nil {
		return doc, err
	}
	var members, own map[string]any
	if err := errors.Join(json.Unmarshal(doc, &members), json.Unmarshal(doc, &own)); err != nil {
		return nil, err
	}
	h.o.Metadata(members)
	if members["issuer"] != own["issuer"] {
		return nil, errors.New("the issuer is not to be changed: clients compare it (RFC 8414 §3.3)")
	}
	if h.fapi {
		if err := within(members, own); err != nil {
			return nil, err
		}
	}
	return json.Marshal(members)
}

// within says which list of FAPI's metadata names more than what is there.
func within(members, own map[string]any) error {
	for name, v := range members {
		list, ok := own[name].([]any)
		if !ok || !strings.HasSuffix(name, "_supported") {
			continue
		}
		told, err := json.Marshal(v)
		var more []any
		if err == nil {
			err = json.Unmarshal(told, &more)
		}
		if err != nil || slices.ContainsFunc(more, func(x any) bool { return !slices.Contains(list, x) }) {
			return fmt.Errorf("%s names more than the service does, which FAPI does not allow", name)
		}
	}
	return nil
}

// Metadata serves the issuer's metadata (RFC 8414): mounted alone, at the well-known path between its host and path.
func (h *Handler) Metadata() http.Handler {
	return h.endpoint(true, "GET HEAD", func(w http.ResponseWriter, r *http.Request) error {
		doc, err := h.announced()
		if err != nil {
			return err
		}
		return public(w, r, "application/json", doc)
	})
}

// OpenAPI serves a description of the endpoints, OpenAPI 3.1.
func (h *Handler) OpenAPI() http.Handler {
	return h.endpoint(true, "GET HEAD", func(w http.ResponseWriter, r *http.Request) error {
		return public(w, r, "application/openapi+json", h.spec)
	})
}

func public(w http.ResponseWriter, r *http.Request, media string, doc []byte) error {
	head := w.Header()
	head.Del("Pragma")
	head.Set("Cache-Control", "public, max-age=300")
	head.Set("Content-Type", media)
	send(w, r, http.StatusOK, doc)
	return nil
}

// Resource describes a protected resource for clients that know only its URL (RFC 9728).
type Resource struct {
	Resource string          // required: its https URL, which is also what tokens name in aud
	Name     string          // shown to people; empty: none
	Issuers  []string        // that it takes tokens of; empty, in Options: the service's own
	Scopes   apitoken.Scopes // that its requests need; nil: not said
	Details  []string        // types of authorization_details that it knows
	// DPoP and Certificates say that it takes only tokens that are bound so.
	DPoP, Certificates bool
	// FAPI says that it takes what Validation.FAPI does: proofs signed by PS256, ES256 and EdDSA alone. A Handler of a service
	// with Config.FAPI says so of all.
	FAPI          bool
	Documentation string // URL for developers; empty: none
}

func (x *Resource) check() error {
	u, err := url.Parse(x.Resource)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || strings.Contains(x.Resource, "#") || u.User != nil || u.RawQuery != "" {
		return wrong("Resources", "a resource is a URL without query and fragment (RFC 9728 §1.2)")
	}
	return nil
}

// ResourceMetadataURL is where a resource's metadata are (RFC 9728 §3.1), for [httpauth.Options].Metadata. A slash that follows
// the host is dropped, one at the end of a path is the resource's own.
func ResourceMetadataURL(resource string) string {
	u, err := url.Parse(resource)
	if err != nil {
		return ""
	}
	path := u.EscapedPath()
	if path == "/" {
		path = ""
	}
	return u.Scheme + "://" + u.Host + "/.well-known/oauth-protected-resource" + path
}

// ResourceMetadata serves a resource's metadata (RFC 9728 §3.2), in whatever process the resource is: mount it at the path of
// ResourceMetadataURL. issuer is for a resource that names no Issuers. It panics on a Resource that is no URL.
func ResourceMetadata(x Resource, issuer string) http.Handler {
	if err := x.check(); err != nil {
		panic(err)
	}
	if len(x.Issuers) == 0 && issuer != "" {
		x.Issuers = []string{issuer}
	}
	algs := jws.PublicAlgs
	if x.FAPI {
		algs = jws.FAPIAlgs
	}
	m := struct {
		Resource      string          `json:"resource"`
		Name          string          `json:"resource_name,omitempty"`
		Servers       []string        `json:"authorization_servers,omitempty"`
		Scopes        apitoken.Scopes `json:"scopes_supported,omitempty"`
		Methods       []string        `json:"bearer_methods_supported"`
		DPoPAlgs      []string        `json:"dpop_signing_alg_values_supported"`
		DPoP          bool            `json:"dpop_bound_access_tokens_required,omitempty"`
		Certificates  bool            `json:"tls_client_certificate_bound_access_tokens,omitempty"`
		Details       []string        `json:"authorization_details_types_supported,omitempty"`
		Documentation string          `json:"resource_documentation,omitempty"`
	}{x.Resource, x.Name, x.Issuers, x.Scopes, []string{"header"}, algs, x.DPoP, x.Certificates, x.Details, x.Documentation}
	doc, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return bodytime.Front(bodytime.Default, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Access-Control-Allow-Origin", "*")
		if publicPreflight(w, r) {
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		_ = public(w, r, "application/json", doc)
	}))
}
