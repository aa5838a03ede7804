// The application (../../micro/sky_app.cc) where ESP-IDF starts it.

#include "esp32.h"
#include "esp_log.h"
#include "esp_sleep.h"
#include "esp_system.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
#include "sdkconfig.h"
#include "sky_app.h"

// Waits for the next frame. With deep sleep the chip is off meanwhile, and its USB port away; then
// it starts anew with app_main().
static void Wait() {
#if CONFIG_SKY_DEEP_SLEEP
  esp_deep_sleep(CONFIG_SKY_SECONDS * 1000000ULL);
#else
  vTaskDelay(CONFIG_SKY_SECONDS * pdMS_TO_TICKS(1000));
#endif
}

extern "C" void app_main() {
  if (!camera_start() || !sky_setup()) {
    ESP_LOGE("sky", "next try in %d s", CONFIG_SKY_SECONDS);
    Wait();
    esp_restart();
  }
#if CONFIG_SKY_WEB_PAGE
  web_start();
#endif
  for (;;) {
    sky_loop();
    Wait();
  }
}
