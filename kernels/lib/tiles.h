// The order of a matrix product's tiles: up to 16 tiles of tokens for one of features after another, so that tiles that are
// computed together share what the second cache holds.
#pragma once

struct TilePlace {
    u32 first_token, first_feature;
};

DEVICE u32 tiles_of(u32 len, u32 tile_len) { return (len + tile_len - 1) / tile_len; }

// Tile `idx` of tiles_of(tokens, tile_tokens) * tiles_of(features, tile_features).
DEVICE TilePlace tile_place(u32 idx, u32 tokens, u32 features, u32 tile_tokens, u32 tile_features) {
    constexpr u32 MAX_GROUP = 16;
    const u32 num_rows = tiles_of(features, tile_features), num_columns = tiles_of(tokens, tile_tokens);
    const u32 group = idx / (MAX_GROUP * num_rows), in_group = idx % (MAX_GROUP * num_rows);
    const u32 group_columns = min(MAX_GROUP, num_columns - group * MAX_GROUP);
    return {(group * MAX_GROUP + in_group % group_columns) * tile_tokens, in_group / group_columns * tile_features};
}
