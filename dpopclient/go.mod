module github.com/apitoken-go/apitoken/dpopclient

go 1.25.0

replace github.com/apitoken-go/apitoken => ..

require (
	github.com/apitoken-go/apitoken v0.0.0-00010101000000-000000000000
	github.com/stretchr/testify v1.12.1
)

require (
	github.com/go-jose/go-jose/v4 v4.1.9 // indirect
	github.com/golang-jwt/jwt/v5 v5.3.1 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)
