package oauthhttp

import (
	"net/http"
	"strconv"

	"github.com/apitoken-go/apitoken/remote"
)

// The description of the endpoints, OpenAPI 3.1. It is made of what the Handler mounts, and the tests hold every answer
// that they see against it.

type object = map[string]any

func ref(schema string) object { return object{"$ref": "#/components/schemas/" + schema} }

func text(description string) object { return object{"type": "string", "description": description} }

func texts() object { return object{"type": "array", "items": object{"type": "string"}} }

// shape is the schema of an object with these members.
func shape(members object, required ...string) object {
	return object{"type": "object", "properties": members, "required": required}
}

// header names of answers, each described once.
func headers(names ...string) object {
	out := object{}
	for _, n := range names {
		out[n] = object{"required": true, "schema": object{"type": "string"}}
	}
	return out
}

func content(media string, schema object) object { return object{media: object{"schema": schema}} }

// refusals are the answers that say why not.
func refusals(into object, statuses ...int) object {
	for _, s := range statuses {
		r := object{"description": http.StatusText(s), "content": content("application/json", ref("Error"))}
		switch s {
		case http.StatusUnauthorized, http.StatusForbidden:
			r["headers"] = headers("Cache-Control", "WWW-Authenticate")
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			r["headers"] = headers("Cache-Control", "Retry-After")
		case http.StatusMethodNotAllowed:
			r["headers"] = headers("Cache-Control", "Allow")
		default:
			r["headers"] = headers("Cache-Control")
		}
		into[strconv.Itoa(s)] = r
	}
	return into
}

func answered(schema string, head ...string) object {
	return object{"description": "Done.", "headers": headers(append(head, "Cache-Control")...), "content": content("application/json", ref(schema))}
}

var formRefusals = []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusMethodNotAllowed, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge,
	http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusServiceUnavailable}

// posted is an endpoint that takes a form from a client.
func posted(summary string, members object, required []string, public bool, responses object) object {
	for name, description := range map[string]string{
		"client_id": "Who calls, where no Authorization header says so.", "client_secret": "The secret, for client_secret_post.",
		"client_assertion": "The JWT, for private_key_jwt.", "client_assertion_type": "Always " + assertionType + ".",
	} {
		members[name] = text(description)
	}
	security := []object{{"basic": []string{}}, {"certificate": []string{}}}
	if public {
		security = append(security, object{})
	}
	return object{"post": object{
		"summary": summary, "security": security,
		"requestBody": object{"required": true, "content": content("application/x-www-form-urlencoded", shape(members, required...))},
		"responses":   refusals(responses, formRefusals...),
	}}
}

func got(summary string, responses object) object {
	return object{"get": object{"summary": summary, "security": []object{{}}, "responses": responses}}
}

func (h *Handler) openAPI() object {
	paths := object{
		tokenPath: posted("Issue tokens (RFC 6749 §3.2, RFC 7523, RFC 8628, RFC 8693)", object{
			"grant_type": object{"type": "string", "enum": h.metadata().GrantTypes}, "scope": text("Space-separated; empty: the default of the grant."), "resource": texts(),
			"audience": texts(), "code": text("authorization_code"), "code_verifier": text("RFC 7636 §4.1"), "redirect_uri": text("As in the authorization request."),
			"refresh_token": text("refresh_token"), "device_code": text("device_code"), "assertion": text("jwt-bearer"),
			"subject_token": text("token-exchange"), "subject_token_type": text("token-exchange"), "actor_token": text("token-exchange"),
			"actor_token_type": text("token-exchange"), "requested_token_type": text("token-exchange"), detailsMember: text("RFC 9396, a JSON array."),
		}, []string{"grant_type"}, true, object{"200": answered("Tokens", "Pragma")}),
		revokePath: posted("Revoke a token (RFC 7009)", object{"token": text("Any token."), "token_type_hint": text("Ignored: a token says what it is.")}, []string{"token"}, true,
			object{"200": object{"description": "The token is not, or no longer, one of the client's.", "headers": headers("Cache-Control"),
				"content": content("application/json", object{"type": "object"})}}),
		introspectPath: posted("Say what a token is (RFC 7662, RFC 9701)", object{"token": text("An access token or an API key."), "token_type_hint": text("Ignored.")}, []string{"token"}, false,
			object{"200": object{"description": "Whether it is good, and if so for the caller, what it says.", "headers": headers("Cache-Control"),
				"content": object{"application/json": object{"schema": ref("Introspection")}, introspectionJWT: object{"schema": object{"type": "string"}}}}}),
		jwksPath: got("The public keys (RFC 7517)", object{"200": object{"description": "The key set.", "headers": headers("Cache-Control", "ETag"), "content": content("application/jwk-set+json", ref("Keys"))},
			"304": object{"description": "As before."}}),
		openAPIPath: got("This description", object{"200": object{"description": "OpenAPI 3.1.", "headers": headers("Cache-Control"), "content": content("application/openapi+json", object{"type": "object"})}}),
	}
	if h.o.Consent != nil {
		query := []object{}
		for _, name := range append([]string{"client_id", "request_uri"}, carriedNames...) {
			schema := object{"type": "string"}
			if name == "resource" {
				schema = texts()
			}
			query = append(query, object{"name": name, "in": "query", "required": name == "client_id", "schema": schema})
		}
		page := object{"description": "Shown to the user: the request cannot be answered to the client.", "headers": headers("Cache-Control"), "content": content("text/plain", object{"type": "string"})}
		members := object{}
		for _, p := range query {
			members[p["name"].(string)] = p["schema"]
		}
		responses := object{
			"200": object{"description": "The host's login and consent."},
			"303": object{"description": "The answer to the client, or the host's own redirect.", "headers": headers("Location", "Cache-Control")},
			"400": page, "405": page, "408": page, "413": page, "429": page, "500": page, "503": page,
		}
		const summary = "Ask the user for an authorization code (RFC 6749 §3.1, RFC 7636, RFC 9207)"
		paths[authorizePath] = object{
			"get": object{"summary": summary, "security": []object{{}}, "parameters": query, "responses": responses},
			"post": object{"summary": summary + ", with the parameters in the body", "security": []object{{}}, "responses": responses,
				"requestBody": object{"required": true, "content": content("application/x-www-form-urlencoded", shape(members, "client_id"))}},
		}
		paths[parPath] = posted("Push an authorization request (RFC 9126)", object{"response_type": text("code"), "redirect_uri": text("One of the client's."), "scope": text("Space-separated."),
			"state": text("Comes back."), "code_challenge": text("RFC 7636 §4.2"), "code_challenge_method": text("S256"), "resource": texts(), detailsMember: text("RFC 9396"), "dpop_jkt": text("RFC 9449 §10")},
			[]string{"response_type", "code_challenge", "code_challenge_method"}, true, object{"201": answered("Pushed")})
	}
	if h.o.DevicePage != "" {
		paths[devicePath] = posted("Start a device's authorization (RFC 8628 §3.1)", object{"scope": text("Space-separated."), "resource": texts(), detailsMember: text("RFC 9396")}, []string{}, true,
			object{"200": answered("Device")})
	}
	if h.o.Registration != nil {
		json := object{"required": true, "content": content("application/json", ref("ClientMetadata"))}
		guarded := []object{{"bearer": []string{}}}
		mayRegister := guarded
		if h.o.Registration.Open > 0 {
			mayRegister = append(mayRegister, object{})
		}
		statuses := append([]int{http.StatusForbidden}, formRefusals...)
		paths[registerPath] = object{"post": object{"summary": "Register a client (RFC 7591)", "security": mayRegister, "requestBody": json, "responses": refusals(object{"201": answered("Client")}, statuses...)}}
		paths[registerPath+"/{client}"] = object{
			"parameters": []object{{"name": "client", "in": "path", "required": true, "schema": object{"type": "string"}}},
			"get":        object{"summary": "Read a registration (RFC 7592 §2.1)", "security": guarded, "responses": refusals(object{"200": answered("Client")}, statuses...)},
			"put":        object{"summary": "Replace a registration (RFC 7592 §2.2)", "security": guarded, "requestBody": json, "responses": refusals(object{"200": answered("Client")}, statuses...)},
			"delete": object{"summary": "End a registration (RFC 7592 §2.3)", "security": guarded, "responses": refusals(object{
				"204": object{"description": "Gone.", "headers": headers("Cache-Control")}}, statuses...)},
		}
	}
	return object{
		"openapi": "3.1.0",
		"info":    object{"title": "OAuth 2.0 endpoints", "version": "1", "description": "Tokens of " + h.svc.Issuer() + ". The metadata of RFC 8414 are at " + remote.MetadataURL(h.svc.Issuer()) + "."},
		"servers": []object{{"url": h.base}},
		"paths":   paths,
		"components": object{
			"schemas": h.schemas(),
			"securitySchemes": object{
				"basic":       object{"type": "http", "scheme": "basic", "description": "client_secret_basic (RFC 6749 §2.3.1)"},
				"certificate": object{"type": "mutualTLS", "description": "tls_client_auth and self_signed_tls_client_auth (RFC 8705)"},
				"bearer":      object{"type": "http", "scheme": "bearer", "description": "An initial access token, or a registration access token"},
			},
		},
	}
}

func (h *Handler) schemas() object {
	number, truth, str := object{"type": "integer"}, object{"type": "boolean"}, object{"type": "string"}
	details := object{"type": "array", "items": shape(object{"type": str}, "type")}
	_, registered := h.authMethods()
	client := object{
		"redirect_uris": texts(), "token_endpoint_auth_method": object{"type": "string", "enum": registered}, "grant_types": texts(), "response_types": texts(),
		"client_name": str, "application_type": object{"type": "string", "enum": []string{"native", "web"}}, "scope": str, "jwks": ref("Keys"), "dpop_bound_access_tokens": truth, "tls_client_certificate_bound_access_tokens": truth,
		"tls_client_auth_subject_dn": str, "tls_client_auth_san_dns": str, "tls_client_auth_san_uri": str, "tls_client_auth_san_ip": str, "tls_client_auth_san_email": str,
	}
	information := object{"client_id": str, "client_secret": str, "client_id_issued_at": number, "client_secret_expires_at": number, "registration_access_token": str, "registration_client_uri": str}
	for name, schema := range client {
		information[name] = schema
	}
	closed := func(s object) object { s["additionalProperties"] = false; return s }
	return object{
		"Error": closed(shape(object{"error": object{"type": "string", "pattern": "^[\\x20-\\x21\\x23-\\x5B\\x5D-\\x7E]+$"}, "error_description": str}, "error")),
		"Tokens": closed(shape(object{"access_token": str, "token_type": object{"type": "string", "enum": []string{"Bearer", "DPoP"}}, "expires_in": number, "refresh_token": str, "scope": str,
			"issued_token_type": object{"type": "string", "enum": []string{typeAccess, typeJWT}}, detailsMember: details}, "access_token", "token_type", "expires_in", "scope")),
		"Introspection": closed(shape(object{"active": truth, "iss": str, "sub": str, "client_id": str, "jti": str, "token_type": object{"type": "string", "enum": []string{"Bearer", "DPoP"}}, "scope": str,
			"aud": texts(), "exp": number, "iat": number, "sid": str, "roles": texts(), "act": shape(object{"sub": str}, "sub"), "cnf": object{"type": "object"}, detailsMember: details,
			"apitoken_kind": object{"type": "string", "enum": []string{"access", "apikey"}}, "apitoken_pos": str, "apitoken_claims": object{"type": "object"}}, "active")),
		"Pushed": closed(shape(object{"request_uri": str, "expires_in": number}, "request_uri", "expires_in")),
		"Device": closed(shape(object{"device_code": str, "user_code": str, "verification_uri": str, "verification_uri_complete": str, "expires_in": number, "interval": number},
			"device_code", "user_code", "verification_uri", "expires_in", "interval")),
		"Client":         closed(shape(information, "client_id", "client_id_issued_at", "registration_client_uri", "token_endpoint_auth_method", "grant_types", "response_types", "scope")),
		"ClientMetadata": shape(client),
		"Keys":           shape(object{"keys": object{"type": "array", "items": shape(object{"kty": str, "kid": str, "alg": str, "use": str}, "kty")}}, "keys"),
	}
}
